/* Spends its time in a function that has no unwind table, which it calls and which calls back.
 *   no-cfi SECONDS       prints "ready PID" */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile int zero;

__attribute__((noinline, noipa)) void called_back(void) {
  for (volatile int work = 0; work < 1000; work++) {}
  usleep(100);
}

void without_table(void);
__asm__(".pushsection .text\n.globl without_table\n.type without_table,@function\nwithout_table:\n"
        "sub $24,%rsp\ncall called_back\nadd $24,%rsp\nret\n.size without_table,.-without_table\n.popsection");

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 60);
  printf("ready %d\n", getpid());
  fflush(stdout);
  while (!zero) without_table();
}
