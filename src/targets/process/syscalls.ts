/** System call numbers of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl), as far as livegraft makes or knows them. */
export const SYS_mmap = 9;
export const SYS_getpid = 39;
export const SYS_kill = 62;
export const SYS_futex = 202;
/** The operation of a futex call that waits, within a process. */
export const FUTEX_WAIT_PRIVATE = 128;
export const SYS_munmap = 11;
export const SYS_rt_sigreturn = 15;
export const SYS_close = 3;
export const SYS_sigaltstack = 131;
export const SYS_restart_syscall = 219;
export const SYS_memfd_create = 319;

/**
 * Calls that answer EINTR to a stop although no handler runs, and that can be made again with the same arguments:
 * the list of signal(7), and the socket calls that do so when a timeout is set (`sock_intr_errno`). All of them report
 * partial work by a count instead, so an EINTR says that nothing was done. `close` is not here: its descriptor is gone.
 */
const RESTARTABLE = new Set([
  0, // read: inotify, sockets with SO_RCVTIMEO, terminals
  1, // write
  19, // readv
  20, // writev
  42, // connect
  43, // accept
  44, // sendto
  45, // recvfrom
  46, // sendmsg
  47, // recvmsg
  65, // semop
  128, // rt_sigtimedwait
  208, // io_getevents
  220, // semtimedop
  232, // epoll_wait
  281, // epoll_pwait
  288, // accept4
  299, // recvmmsg
  307, // sendmmsg
  333, // io_pgetevents
  426, // io_uring_enter
  441, // epoll_pwait2
]);

export function interruptedSyscallRestarts(number: number): boolean {
  return RESTARTABLE.has(number);
}

/**
 * Calls whose interrupted wait the kernel continues through `restart_syscall` (ERESTART_RESTARTBLOCK): poll,
 * nanosleep, futex, clock_nanosleep. A thread in one of them is the last choice for remote calls.
 */
const RESTART_BLOCK = new Set([7, 35, 202, 230, SYS_restart_syscall]);

export function usesRestartBlock(number: number): boolean {
  return RESTART_BLOCK.has(number);
}

/**
 * Calls that wait for something outside of the thread, and that the C library makes with none of its own locks held but
 * those of a stream that is being read.
 */
const WAITS = new Set([
  0, // read
  7, // poll
  17, // pread64
  19, // readv
  23, // select
  34, // pause
  35, // nanosleep
  43, // accept
  45, // recvfrom
  47, // recvmsg
  61, // wait4
  65, // semop
  70, // msgrcv
  128, // rt_sigtimedwait
  130, // rt_sigsuspend
  202, // futex
  208, // io_getevents
  SYS_restart_syscall, // poll, nanosleep, clock_nanosleep, futex
  220, // semtimedop
  230, // clock_nanosleep
  232, // epoll_wait
  247, // waitid
  270, // pselect6
  271, // ppoll
  281, // epoll_pwait
  288, // accept4
  299, // recvmmsg
  333, // io_pgetevents
  426, // io_uring_enter
  441, // epoll_pwait2
]);

export function isWait(number: number): boolean {
  return WAITS.has(number);
}

/** Calls in which threads wait, for people. */
const VFORK = 'vfork, until the child that runs on its memory executes a program or ends';
const BLOCKING_NAMES = new Map<number, string>([
  [0, 'read'],
  [1, 'write'],
  [7, 'poll'],
  [19, 'readv'],
  [20, 'writev'],
  [23, 'select'],
  [34, 'pause'],
  [35, 'nanosleep'],
  [42, 'connect'],
  [43, 'accept'],
  [44, 'sendto'],
  [45, 'recvfrom'],
  [46, 'sendmsg'],
  [47, 'recvmsg'],
  [56, VFORK],
  [58, VFORK],
  [61, 'wait4'],
  [65, 'semop'],
  [72, 'fcntl'],
  [73, 'flock'],
  [128, 'rt_sigtimedwait'],
  [130, 'rt_sigsuspend'],
  [202, 'futex (a lock or a condition)'],
  [208, 'io_getevents'],
  [219, 'a timed wait'],
  [220, 'semtimedop'],
  [230, 'clock_nanosleep'],
  [232, 'epoll_wait'],
  [247, 'waitid'],
  [270, 'pselect6'],
  [271, 'ppoll'],
  [281, 'epoll_pwait'],
  [288, 'accept4'],
  [426, 'io_uring_enter'],
  [435, VFORK],
  [441, 'epoll_pwait2'],
]);

export function blockingCallName(number: number): string {
  return BLOCKING_NAMES.get(number) ?? `system call ${number}`;
}
