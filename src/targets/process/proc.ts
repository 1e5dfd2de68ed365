import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { isErrno } from './errno.js';

/** Readers of `/proc/PID` (proc(5)). Each answers undefined when the process or thread is gone. */

export interface Mapping {
  readonly start: number;
  readonly end: number;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly executable: boolean;
  readonly shared: boolean;
  readonly fileOffset: number;
  /** `major:minor`, hexadecimal. */
  readonly device: string;
  readonly inode: number;
  /** As the kernel prints it: a path (perhaps ` (deleted)`), `[heap]`, `[vdso]`, or empty. */
  readonly name: string;
}

const GONE = ['ENOENT', 'ESRCH'];

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
  } catch (error) {
    if (GONE.some((code) => isErrno(error, code))) return undefined;
    throw error;
  }
}

export function readMappings(pid: number): Mapping[] | undefined {
  const text = readIfThere(`${memoryFolder(pid)}/maps`);
  return text === undefined ? undefined : parseMappings(text);
}

const AT_HWCAP2 = 26;
/** arch/x86/include/uapi/asm/hwcap2.h, since Linux 5.9. */
const HWCAP2_FSGSBASE = 2n;

/** Whether the kernel lets the process set its GS base by itself. */
export function canSetGsBase(pid: number): boolean {
  try {
    return hasFsgsbase(readFileSync(`/proc/${pid}/auxv`));
  } catch (error) {
    if (GONE.some((code) => isErrno(error, code))) return false;
    throw error;
  }
}

/** `auxv`: pairs of 64-bit type and value, as `/proc/PID/auxv` has them. */
export function hasFsgsbase(auxv: Buffer): boolean {
  for (let at = 0; at + 16 <= auxv.length; at += 16) {
    if (auxv.readBigUInt64LE(at) === BigInt(AT_HWCAP2))
      return (auxv.readBigUInt64LE(at + 8) & HWCAP2_FSGSBASE) !== 0n;
  }
  return false;
}

/** The text of `/proc/PID/maps`; names are decoded as UTF-8 with the kernel's octal escapes left as they are. */
export function parseMappings(text: string): Mapping[] {
  const mappings: Mapping[] = [];
  for (const line of text.split('\n')) {
    if (line === '') continue;
    const match = /^([0-9a-f]+)-([0-9a-f]+) (.)(.)(.)(.) ([0-9a-f]+) (\S+) (\d+)\s*(.*)$/.exec(line);
    if (match === null) continue;
    const start = Number.parseInt(match[1] as string, 16);
    // [vsyscall] lies beyond the user half; it is neither readable nor of use here.
    if (start >= 2 ** 56) continue;
    mappings.push({
      start,
      end: Number.parseInt(match[2] as string, 16),
      readable: match[3] === 'r',
      writable: match[4] === 'w',
      executable: match[5] === 'x',
      shared: match[6] === 's',
      fileOffset: Number.parseInt(match[7] as string, 16),
      device: match[8] as string,
      inode: Number(match[9]),
      name: Buffer.from(match[10] as string, 'latin1').toString('utf8'),
    });
  }
  return mappings;
}

/**
 * The folder in `/proc` that shows a process's memory, files and program: its own, or, when the leader has ended
 * before its threads and shows nothing any more, that of a thread.
 */
export function memoryFolder(pid: number): string {
  if (readThreadStat(pid, pid)?.state !== 'Z') return `/proc/${pid}`;
  const living = listThreads(pid)?.find((tid) => tid !== pid && readThreadStat(pid, tid)?.state !== 'Z');
  return `/proc/${living ?? pid}`;
}

export function listThreads(pid: number): number[] | undefined {
  try {
    return readdirSync(`/proc/${pid}/task`).map(Number);
  } catch (error) {
    if (GONE.some((code) => isErrno(error, code))) return undefined;
    throw error;
  }
}

export interface ThreadStat {
  readonly name: string;
  /** `R` running or runnable, `S` asleep, `D` uninterruptible, `T` stopped, `t` traced, `Z` zombie, `X` dead. */
  readonly state: string;
  /** `PF_…` bits (include/linux/sched.h). */
  readonly flags: number;
  /** The one it runs on or ran on last. */
  readonly processor: number;
  /** When it began, in clock ticks since boot. */
  readonly beganTicks: number;
}

const PF_EXITING = 0x4;
export const PF_IO_WORKER = 0x10;
export const PF_USER_WORKER = 0x4000;
export const PF_KTHREAD = 0x200000;

export function readThreadStat(pid: number, tid: number): ThreadStat | undefined {
  const text = readIfThere(`/proc/${pid}/task/${tid}/stat`);
  if (text === undefined) return undefined;
  // The name may hold spaces and parentheses: it ends at the last one.
  const close = text.lastIndexOf(')');
  const fields = text.slice(close + 2).split(' ');
  return {
    name: Buffer.from(text.slice(text.indexOf('(') + 1, close), 'latin1').toString('utf8'),
    state: fields[0] ?? '?',
    flags: Number(fields[6] ?? 0),
    processor: Number(fields[36] ?? -1),
    beganTicks: Number(fields[19] ?? 0),
  };
}

/** How often the thread has been given a processor, the third figure of `schedstat`; undefined where not kept. */
export function readTimeslices(pid: number, tid: number): number | undefined {
  const text = readIfThere(`/proc/${pid}/task/${tid}/schedstat`);
  const field = text?.trim().split(' ')[2];
  return field === undefined ? undefined : Number(field);
}

/**
 * Where a sleeping thread waits: its system call (-1 outside of one, for example in a page fault) and its stack
 * pointer in user mode. Undefined when it runs or can't be read.
 */
export function readBlockingSyscall(
  pid: number,
  tid: number,
): { readonly number: number; readonly first?: number; readonly stackPointer: number } | undefined {
  try {
    // Number, six arguments, stack pointer, program counter; without the arguments outside of a system call.
    const fields = readFileSync(`/proc/${pid}/task/${tid}/syscall`, 'latin1').trim().split(' ');
    const number = Number(fields[0]);
    if (fields.length === 9) return { number, first: Number(fields[1]), stackPointer: Number(fields[7]) };
    return fields.length === 3 ? { number, stackPointer: Number(fields[1]) } : undefined;
  } catch {
    return undefined;
  }
}

/** Fields of `/proc/PID/status` by name. */
export function readStatus(pid: number): ReadonlyMap<string, string> | undefined {
  return parseStatus(readIfThere(`/proc/${pid}/status`));
}

export function readThreadStatus(pid: number, tid: number): ReadonlyMap<string, string> | undefined {
  return parseStatus(readIfThere(`/proc/${pid}/task/${tid}/status`));
}

function parseStatus(text: string | undefined): ReadonlyMap<string, string> | undefined {
  if (text === undefined) return undefined;
  const fields = new Map<string, string>();
  for (const line of text.split('\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return fields;
}

/** What `/proc/PID/exe` points to, for people. */
export function readExecutablePath(pid: number): string | undefined {
  try {
    return readlinkSync(`${memoryFolder(pid)}/exe`);
  } catch {
    return undefined;
  }
}

/** Whether a process still has its memory. */
export function isRunning(pid: number): boolean {
  const stat = readThreadStat(pid, pid);
  if (stat === undefined || stat.state === 'X') return false;
  // The leader may end before its threads: then its memory lives on. On its way out alone it has none.
  const isEnding = stat.state === 'Z' || (stat.flags & PF_EXITING) !== 0;
  return !isEnding || (listThreads(pid)?.length ?? 0) > 1;
}
