/* Two functions that change together; the second can't be redirected: its loop leads back into its first bytes, and
 * there is no padding around it (compiled with -falign-functions=1).
 *   two SECONDS */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifdef PATCHED
#define STEP "2"
#else
#define STEP "1"
#endif

__attribute__((noinline, noipa)) int plain(int value) { return value * 7 + getppid() + STEP[0]; }

/* edi: how often, always at least once. */
__attribute__((naked, noinline, noipa)) void spin(int count) {
  __asm__("xor %eax, %eax\n0:\tsub $" STEP ", %edi\n\tjg 0b\n\tret");
}

__attribute__((naked, noinline, noipa)) void behind(void) { __asm__("ret"); }

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 30);
  printf("ready %d\n", getpid());
  fflush(stdout);
  for (;;) {
    spin(3);
    behind();
    if (plain(0) < 0) abort();
    usleep(2000);
  }
}
