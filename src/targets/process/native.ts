import koffi from 'koffi';
import { LivegraftError } from '../../base/errors.js';

/**
 * The only place where native functions are called. koffi checks almost nothing: a short buffer corrupts the heap and
 * a bad integer is truncated, so every call here checks integers, ranges and buffer sizes first.
 *
 * All ptrace calls of one tracee must come from one OS thread (ptrace(2)): they are synchronous on the calling thread.
 */

const libc = koffi.load('libc.so.6');
const ptraceNumbers = libc.func('ptrace', 'long', ['long', 'long', 'int64', 'int64']);
const ptraceBuffer = libc.func('ptrace', 'long', ['long', 'long', 'int64', 'void *']);
const waitpidCall = libc.func('waitpid', 'int', ['int', 'void *', 'int']);
const getAffinity = libc.func('sched_getaffinity', 'int', ['int', 'size_t', 'void *']);
const setAffinity = libc.func('sched_setaffinity', 'int', ['int', 'size_t', 'void *']);

const PTRACE_POKEUSER = 6;
export const PTRACE_CONT = 7;
const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
export const PTRACE_DETACH = 17;
export const PTRACE_SYSCALL = 24;
const PTRACE_GETEVENTMSG = 0x4201;
const PTRACE_GETREGSET = 0x4204;
export const PTRACE_SEIZE = 0x4206;
export const PTRACE_INTERRUPT = 0x4207;
export const PTRACE_LISTEN = 0x4208;
const PTRACE_GETSIGMASK = 0x420a;
const PTRACE_SETSIGMASK = 0x420b;
const PTRACE_SECCOMP_GET_FILTER = 0x420c;

export const PTRACE_O_TRACESYSGOOD = 0x01;
export const PTRACE_O_TRACEFORK = 0x02;
export const PTRACE_O_TRACEVFORK = 0x04;
export const PTRACE_O_TRACECLONE = 0x08;
export const PTRACE_O_TRACEEXEC = 0x10;

const NT_X86_XSTATE = 0x202;

const WNOHANG = 1;
const WALL = 0x40000000;

/** `user_regs_struct` of x86-64: 27 registers of 8 bytes. */
export const USER_REGS_BYTES = 27 * 8;
const SIGSET_BYTES = 8;

/** The errno values that callers tell apart (asm-generic/errno-base.h). */
export const EPERM = 1;
export const ESRCH = 3;
const ECHILD = 10;
export const EACCES = 13;

/** A ptrace request that the kernel refused. `errno` decides what it means; callers translate it. */
export class PtraceError extends LivegraftError {
  readonly errno: number;

  constructor(request: string, tid: number, errno: number) {
    super('ptrace-failed', `${request} of thread ${tid} failed with errno ${errno}`, {
      details: { request, tid, errno },
    });
    this.errno = errno;
  }
}

function expectTid(tid: number): number {
  if (!Number.isInteger(tid) || tid <= 0 || tid > 0x7fffffff) throw new RangeError(`bad thread id ${tid}`);
  return tid;
}

function expectInteger(value: number): number {
  if (!Number.isSafeInteger(value)) throw new RangeError(`not an integer: ${value}`);
  return value;
}

/** A ptrace request with plain numbers. Throws {@link PtraceError}. */
export function ptrace(request: number, name: string, tid: number, address: number, data: number): void {
  if (ptraceNumbers(request, expectTid(tid), expectInteger(address), expectInteger(data)) === -1) {
    throw new PtraceError(name, tid, koffi.errno());
  }
}

/** The same for requests on the hot path where a vanished thread is an expected answer: returns 0 or the errno. */
export function tryPtrace(request: number, tid: number, address: number, data: number): number {
  return ptraceNumbers(request, expectTid(tid), expectInteger(address), expectInteger(data)) === -1
    ? koffi.errno()
    : 0;
}

/** Returns 0 or the errno. */
export function tryGetRegisters(tid: number, into: Buffer): number {
  if (into.length < USER_REGS_BYTES) throw new RangeError('register buffer is too short');
  return ptraceBuffer(PTRACE_GETREGS, expectTid(tid), 0, into) === -1 ? koffi.errno() : 0;
}

export function setRegisters(tid: number, from: Buffer): void {
  if (from.length < USER_REGS_BYTES) throw new RangeError('register buffer is too short');
  if (ptraceBuffer(PTRACE_SETREGS, expectTid(tid), 0, from) === -1) {
    throw new PtraceError('PTRACE_SETREGS', tid, koffi.errno());
  }
}

/** Writes one register by its index in `user_regs_struct`. A thread that has just been killed needs none: no error. */
export function pokeRegister(tid: number, index: number, value: number): void {
  if (!Number.isInteger(index) || index < 0 || index * 8 >= USER_REGS_BYTES) {
    throw new RangeError(`bad register index ${index}`);
  }
  const errno = tryPtrace(PTRACE_POKEUSER, tid, index * 8, value);
  if (errno !== 0 && errno !== ESRCH) throw new PtraceError('PTRACE_POKEUSER', tid, errno);
}

export function getSignalMask(tid: number): Buffer {
  const mask = Buffer.alloc(SIGSET_BYTES);
  if (ptraceBuffer(PTRACE_GETSIGMASK, expectTid(tid), SIGSET_BYTES, mask) === -1) {
    throw new PtraceError('PTRACE_GETSIGMASK', tid, koffi.errno());
  }
  return mask;
}

export function setSignalMask(tid: number, mask: Buffer): void {
  if (mask.length < SIGSET_BYTES) throw new RangeError('signal mask is too short');
  if (ptraceBuffer(PTRACE_SETSIGMASK, expectTid(tid), SIGSET_BYTES, mask) === -1) {
    throw new PtraceError('PTRACE_SETSIGMASK', tid, koffi.errno());
  }
}

/** The message of the last ptrace event: the new task's id for clone, fork and vfork. */
export function getEventMessage(tid: number): number {
  const message = Buffer.alloc(8);
  if (ptraceBuffer(PTRACE_GETEVENTMSG, expectTid(tid), 0, message) === -1) {
    throw new PtraceError('PTRACE_GETEVENTMSG', tid, koffi.errno());
  }
  return Number(message.readBigUInt64LE(0));
}

/** The whole extended state (x87, SSE, AVX, …) in the uncompacted XSAVE format. */
export function getExtendedState(tid: number): Buffer {
  // No x86 processor has a larger one: AMX tile data brings it to about 11 KiB.
  const bytes = Buffer.alloc(32768);
  const vector = Buffer.alloc(16);
  vector.writeBigUInt64LE(BigInt(koffi.address(bytes)), 0);
  vector.writeBigUInt64LE(BigInt(bytes.length), 8);
  if (ptraceBuffer(PTRACE_GETREGSET, expectTid(tid), NT_X86_XSTATE, vector) === -1) {
    throw new PtraceError('PTRACE_GETREGSET', tid, koffi.errno());
  }
  return Buffer.from(bytes.subarray(0, Number(vector.readBigUInt64LE(8))));
}

/**
 * The `index`-th newest seccomp filter as raw `sock_filter`s (8 bytes each), undefined past the last.
 * Needs CAP_SYS_ADMIN and a kernel with CONFIG_CHECKPOINT_RESTORE; else throws {@link PtraceError}.
 */
export function getSeccompFilter(tid: number, index: number): Buffer | undefined {
  const ENOENT = 2;
  // BPF_MAXINSNS is 4096.
  const filter = Buffer.alloc(4096 * 8);
  const count = ptraceBuffer(PTRACE_SECCOMP_GET_FILTER, expectTid(tid), expectInteger(index), filter);
  if (count === -1) {
    const errno = koffi.errno();
    if (errno === ENOENT) return undefined;
    throw new PtraceError('PTRACE_SECCOMP_GET_FILTER', tid, errno);
  }
  return filter.subarray(0, count * 8);
}

const statusBuffer = Buffer.alloc(4);

/** The raw wait status of one thread, `undefined` when it has nothing to report, `'none'` when it is no tracee. */
export function pollWait(tid: number): number | undefined | 'none' {
  const result: number = waitpidCall(expectTid(tid), statusBuffer, WALL | WNOHANG);
  if (result === 0) return undefined;
  if (result === -1) {
    const errno = koffi.errno();
    if (errno === ECHILD) return 'none';
    throw new PtraceError('waitpid', tid, errno);
  }
  return statusBuffer.readInt32LE(0);
}

/** `cpu_set_t` of glibc: one bit for each of 1024 processors. */
const CPU_SET_BYTES = 128;
/** Those that this thread might use when it began. */
let ownProcessors: Buffer | undefined;

/**
 * Restricts this thread to the processors that it was given, without those of the list; not at all when none would be
 * left. On a machine with more processors than `cpu_set_t` holds it stays where it is.
 */
export function keepOffProcessors(processors: Iterable<number>): void {
  if (ownProcessors === undefined) {
    const given = Buffer.alloc(CPU_SET_BYTES);
    if (getAffinity(0, CPU_SET_BYTES, given) < 0) return;
    ownProcessors = given;
  }
  const rest = Buffer.from(ownProcessors);
  for (const processor of processors) {
    const at = processor >> 3;
    rest[at] = (rest[at] ?? 0) & ~(1 << (processor & 7));
  }
  setAffinity(0, CPU_SET_BYTES, rest.some((byte) => byte !== 0) ? rest : ownProcessors);
}
