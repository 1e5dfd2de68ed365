/* Known patterns stay in every general, x87, SSE and AVX register, the flags and the red zone while a loop runs; a
 * second thread does the same around system calls and checks errno. The first difference ends it with SIGABRT.
 *   canary SECONDS        prints "ready PID" */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline, noipa)) int patched_function(int x) {
#ifdef PATCHED
  return x + 2;
#else
  return x + 1;
#endif
}

struct block { uint64_t general[13]; uint8_t vector[16][32]; double x87[8]; uint64_t red[2]; uint64_t flags; };

/* Fills the registers from `in`, spins, and stores them to `out`. */
extern void spin_with(const struct block *in, struct block *out, long count);
__asm__(
    ".text\n.globl spin_with\n.type spin_with,@function\nspin_with:\n"
    "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "push %rdi\npush %rsi\n"
    "fldl 616(%rdi)\nfldl 624(%rdi)\nfldl 632(%rdi)\nfldl 640(%rdi)\n"
    "fldl 648(%rdi)\nfldl 656(%rdi)\nfldl 664(%rdi)\nfldl 672(%rdi)\n"
    "vmovdqu 104(%rdi),%ymm0\nvmovdqu 136(%rdi),%ymm1\nvmovdqu 168(%rdi),%ymm2\nvmovdqu 200(%rdi),%ymm3\n"
    "vmovdqu 232(%rdi),%ymm4\nvmovdqu 264(%rdi),%ymm5\nvmovdqu 296(%rdi),%ymm6\nvmovdqu 328(%rdi),%ymm7\n"
    "vmovdqu 360(%rdi),%ymm8\nvmovdqu 392(%rdi),%ymm9\nvmovdqu 424(%rdi),%ymm10\nvmovdqu 456(%rdi),%ymm11\n"
    "vmovdqu 488(%rdi),%ymm12\nvmovdqu 520(%rdi),%ymm13\nvmovdqu 552(%rdi),%ymm14\nvmovdqu 584(%rdi),%ymm15\n"
    "mov 0(%rdi),%rax\nmov 8(%rdi),%rbx\nmov 16(%rdi),%rcx\nmov 24(%rdi),%rsi\nmov 32(%rdi),%rbp\n"
    "mov 40(%rdi),%r8\nmov 48(%rdi),%r9\nmov 56(%rdi),%r10\nmov 64(%rdi),%r11\nmov 72(%rdi),%r12\n"
    "mov 80(%rdi),%r13\nmov 88(%rdi),%r14\nmov 96(%rdi),%r15\n"
    "movq %rax,-16(%rsp)\nmovq %rbx,-128(%rsp)\n"
    "stc\n"
    "1: dec %rdx\njnz 1b\n"
    "pushfq\npop %rdi\nxchg %rdi,(%rsp)\n" /* the flags wait where `out` was; out is in rdi */
    "mov %rax,0(%rdi)\nmov %rbx,8(%rdi)\nmov %rcx,16(%rdi)\nmov %rsi,24(%rdi)\nmov %rbp,32(%rdi)\n"
    "mov %r8,40(%rdi)\nmov %r9,48(%rdi)\nmov %r10,56(%rdi)\nmov %r11,64(%rdi)\nmov %r12,72(%rdi)\n"
    "mov %r13,80(%rdi)\nmov %r14,88(%rdi)\nmov %r15,96(%rdi)\n"
    "pop %rax\nmov %rax,696(%rdi)\nmov -24(%rsp),%rax\n"
    "mov -136(%rsp),%rax\nmov %rax,688(%rdi)\n"
    "vmovdqu %ymm0,104(%rdi)\nvmovdqu %ymm1,136(%rdi)\nvmovdqu %ymm2,168(%rdi)\nvmovdqu %ymm3,200(%rdi)\n"
    "vmovdqu %ymm4,232(%rdi)\nvmovdqu %ymm5,264(%rdi)\nvmovdqu %ymm6,296(%rdi)\nvmovdqu %ymm7,328(%rdi)\n"
    "vmovdqu %ymm8,360(%rdi)\nvmovdqu %ymm9,392(%rdi)\nvmovdqu %ymm10,424(%rdi)\nvmovdqu %ymm11,456(%rdi)\n"
    "vmovdqu %ymm12,488(%rdi)\nvmovdqu %ymm13,520(%rdi)\nvmovdqu %ymm14,552(%rdi)\nvmovdqu %ymm15,584(%rdi)\n"
    "fstpl 672(%rdi)\nfstpl 664(%rdi)\nfstpl 656(%rdi)\nfstpl 648(%rdi)\n"
    "fstpl 640(%rdi)\nfstpl 632(%rdi)\nfstpl 624(%rdi)\nfstpl 616(%rdi)\nvzeroupper\n"
    "pop %rax\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n.size spin_with,.-spin_with\n");

static void check(const struct block *in, const struct block *out) {
  if (memcmp(in->general, out->general, sizeof in->general)) { fputs("general register changed\n", stdout); fflush(stdout); abort(); }
  if (memcmp(in->vector, out->vector, sizeof in->vector)) { fputs("vector register changed\n", stdout); fflush(stdout); abort(); }
  if (memcmp(in->x87, out->x87, sizeof in->x87)) { fputs("x87 register changed\n", stdout); fflush(stdout); abort(); }
  if (out->red[1] != in->general[1]) { fputs("red zone changed\n", stdout); fflush(stdout); abort(); }
  /* dec leaves the carry flag alone: it is still set. The direction flag is still clear. */
  if ((out->flags & 0x401) != 0x001) { fputs("flags changed\n", stdout); fflush(stdout); abort(); }
}

static void *spinning(void *argument) {
  struct block in, out;
  unsigned seed = (unsigned)(uintptr_t)argument;
  for (long round = 0;; round++) {
    for (size_t i = 0; i < sizeof in; i++) ((uint8_t *)&in)[i] = (uint8_t)rand_r(&seed);
    for (int i = 0; i < 8; i++) in.x87[i] = 1.0 / (round + 3 + i);
    spin_with(&in, &out, 20000);
    check(&in, &out);
    int before = patched_function(1);
    if (before != 2 && before != 3) abort();
  }
}

static void *calling(void *argument) {
  for (;;) {
    errno = 12345;
    usleep(200);
    if (errno != 12345) { printf("errno changed to %d\n", errno); fflush(stdout); abort(); }
    int value = patched_function(1);
    if (value != 2 && value != 3) abort();
  }
  return argument;
}

int main(int argc, char **argv) {
  alarm(argc > 1 ? (unsigned)atoi(argv[1]) : 60);
  pthread_t thread;
  pthread_create(&thread, NULL, spinning, (void *)1);
  pthread_create(&thread, NULL, calling, NULL);
  printf("ready %d\n", getpid());
  fflush(stdout);
  spinning((void *)2);
}
