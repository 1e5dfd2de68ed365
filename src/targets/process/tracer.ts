import { LivegraftError } from '../../base/errors.js';
import * as native from './native.js';
import { readStatus, readThreadStat, readThreadStatus } from './proc.js';
import { ORIG_RAX, RAX, readRegister } from './registers.js';
import { interruptedSyscallRestarts } from './syscalls.js';
import { parseWaitStatus, type WaitEvent } from './wait-status.js';

/** How a thread came to be that a seized one has just created. */
interface Birth {
  readonly parent: Tracee;
  readonly how: 'thread' | 'process' | 'vfork';
}

/** A seized thread. Only the {@link Tracer} changes it. */
export class Tracee {
  readonly tid: number;
  /** The process whose memory it runs in; for a vfork child the parent's. */
  readonly pid: number;
  state: 'running' | 'stopped' | 'gone' = 'running';
  /** What stopped it; meaningful while `state` is `stopped`. */
  stop: WaitEvent = { kind: 'interruptStop' };
  /** An interrupt was sent whose stop has not been seen: detaching now would make a system call fail with EINTR. */
  interruptPending = false;
  /**
   * Another stop came while an interrupt was under way. The kernel then drops the interrupt if it had been sent before
   * that stop (ptrace_stop: "any trap clears pending STOP trap") and keeps it otherwise; which, can't be told.
   */
  mayTrapAgain = false;
  /** Until its first stop, in which it has not run any user code yet. */
  birth: Birth | undefined;
  /** It runs code for us, and whoever borrowed it waits for its stops: nobody else lets it go on. */
  isBorrowed = false;
  /** How many more system-call stops are wanted. */
  syscallStopsWanted = 0;
  readonly registers: Buffer = Buffer.alloc(native.USER_REGS_BYTES);
  /** A vfork child runs on its parent's memory and stack until it executes a program: it is no task of its own. */
  readonly isVforkChild: boolean;

  constructor(tid: number, pid: number, isVforkChild = false) {
    this.tid = tid;
    this.pid = pid;
    this.isVforkChild = isVforkChild;
  }
}

export type TracerEvent =
  | {
      readonly kind: 'created';
      readonly tracee: Tracee;
      readonly parent: Tracee;
      readonly how: 'thread' | 'process' | 'vfork';
    }
  | { readonly kind: 'gone'; readonly tracee: Tracee }
  /** A system-call boundary of a watched thread; it stays stopped until it is resumed. */
  | { readonly kind: 'syscallStop'; readonly tracee: Tracee }
  /** The process replaced its program: every other thread is gone, and nothing of ours is left in it. */
  | { readonly kind: 'exec'; readonly tracee: Tracee };

const FIRST_STOP_TIMEOUT_MS = 1000;
/**
 * Where a stop can't be tried again later: a thread may wait long for a processor on a crowded machine (300 ms were
 * seen with seven busy processes on two cores).
 */
export const PATIENT_TIMEOUT_MS = 3000;

/** Sleeping threads that are woken together to be let go: each needs a processor for some microseconds. */
const DETACHED_TOGETHER = 8;

const OPTIONS =
  native.PTRACE_O_TRACESYSGOOD |
  native.PTRACE_O_TRACEFORK |
  native.PTRACE_O_TRACEVFORK |
  native.PTRACE_O_TRACECLONE |
  native.PTRACE_O_TRACEEXEC;

/** errno's of a system call that the kernel will restart after a stop (include/linux/errno.h). */
const EINTR = 4;
const ERESTARTNOHAND = 514;

const sleepCell = new Int32Array(new SharedArrayBuffer(4));
/** Blocks this thread: for waits too short for a timer. */
export function sleepSync(ms: number): void {
  Atomics.wait(sleepCell, 0, 0, ms);
}

/** Keeps the processor until then, for a while too short to sleep. */
export function spinUntil(atMs: number): void {
  while (performance.now() < atMs);
}

/** Seizes, stops, resumes and releases threads, and turns wait statuses into events. One instance a session. */
export class Tracer {
  readonly tracees = new Map<number, Tracee>();
  /** Called with a new tracee in its very first stop, before it has run any user code. */
  onCreated: (tracee: Tracee, parent: Tracee, how: 'thread' | 'process' | 'vfork') => void = () => {};
  /** How long at most a thread that created another was held until that was noted. */
  longestCreationMs = 0;
  #lookedAtMs = performance.now();
  #events: TracerEvent[] = [];
  /** How often a thread has stopped with a signal on its way to it: until somebody looks, it waits. */
  signalStops = 0;

  /** Attaches without stopping. Returns undefined when the thread is gone or can't run user code. */
  seize(pid: number, tid: number): Tracee | undefined {
    const errno = native.tryPtrace(native.PTRACE_SEIZE, tid, 0, OPTIONS);
    if (errno === 0) {
      const tracee = new Tracee(tid, pid);
      this.tracees.set(tid, tracee);
      return tracee;
    }
    if (errno === native.ESRCH) return undefined;
    const stat = readThreadStat(pid, tid);
    if (stat === undefined || stat.state === 'Z' || stat.state === 'X') return undefined;
    // A thread that a seized one has just created is attached already: its creation will be reported.
    if (Number(readThreadStatus(pid, tid)?.get('TracerPid')) === process.pid) return undefined;
    throw seizeError(pid, tid, errno);
  }

  /** Asks a running thread to stop. Its stop is seen by {@link collect} or {@link poll}. */
  interrupt(tracee: Tracee): void {
    if (tracee.state === 'gone' || tracee.interruptPending) return;
    const errno = native.tryPtrace(native.PTRACE_INTERRUPT, tracee.tid, 0, 0);
    if (errno === 0) tracee.interruptPending = true;
    else if (errno === native.ESRCH) this.#check(tracee);
    else throw new native.PtraceError('PTRACE_INTERRUPT', tracee.tid, errno);
  }

  /** Waits until the thread is stopped. Returns its state after at most `timeoutMs`. */
  collect(tracee: Tracee, timeoutMs: number): Tracee['state'] {
    let deadline = 0;
    for (let spins = 0; tracee.state === 'running'; spins++) {
      if (this.#check(tracee)) break;
      if (spins < 200) continue;
      // The thread waits for a processor that this loop may be holding.
      const now = performance.now();
      if (deadline === 0) deadline = now + timeoutMs;
      if (now > deadline) break;
      sleepSync(spins < 400 ? 0.02 : 0.2);
    }
    return tracee.state;
  }

  /** Lets a stopped thread go on, with the signal that stopped it, if one did. */
  resume(tracee: Tracee): void {
    if (tracee.state !== 'stopped') return;
    const { stop } = tracee;
    tracee.state = 'running';
    const request =
      stop.kind === 'groupStop'
        ? native.PTRACE_LISTEN
        : tracee.syscallStopsWanted > 0
          ? native.PTRACE_SYSCALL
          : native.PTRACE_CONT;
    const signal = stop.kind === 'signalStop' ? stop.signal : 0;
    const errno = native.tryPtrace(request, tracee.tid, 0, signal);
    if (errno === native.ESRCH) this.#check(tracee);
    else if (errno !== 0) throw new native.PtraceError('resuming', tracee.tid, errno);
  }

  /**
   * Lets a stopped thread go for good. With an interrupt still under way it is driven to that stop first: a pending
   * trap that vanishes with the tracer would surface as an EINTR of the interrupted system call.
   */
  detach(tracee: Tracee): void {
    tracee.syscallStopsWanted = 0;
    for (
      let i = 0;
      (tracee.interruptPending || tracee.mayTrapAgain) && i < 100 && tracee.state !== 'gone';
      i++
    ) {
      this.leadIntoTrap(tracee, 1000);
    }
    if (tracee.state === 'gone') return;
    const signal = tracee.stop.kind === 'signalStop' ? tracee.stop.signal : 0;
    const errno = native.tryPtrace(native.PTRACE_DETACH, tracee.tid, 0, signal);
    if (errno !== 0 && errno !== native.ESRCH) {
      throw new native.PtraceError('PTRACE_DETACH', tracee.tid, errno);
    }
    tracee.state = 'gone';
    this.tracees.delete(tracee.tid);
  }

  /** Interrupts a stopped thread and lets it go up to its next stop: the interrupt's own, unless another comes first. */
  leadIntoTrap(tracee: Tracee, timeoutMs: number): void {
    this.interrupt(tracee);
    this.resume(tracee);
    this.collect(tracee, timeoutMs);
  }

  /** Stops what still runs and detaches all. Threads that don't stop in time stay seized until this process ends. */
  detachAll(timeoutMs: number): void {
    const all = [...this.tracees.values()];
    for (let i = 0; i < all.length; i += DETACHED_TOGETHER)
      this.#detachTogether(all.slice(i, i + DETACHED_TOGETHER), timeoutMs);
    // Children that were created while the others were being stopped.
    if (this.tracees.size > 0 && [...this.tracees.values()].some((t) => !all.includes(t))) {
      this.detachAll(timeoutMs);
    }
  }

  /** Each goes on as soon as it has stopped, whichever is first: a running one stops at once, a sleeping one has to wake. */
  #detachTogether(tracees: readonly Tracee[], timeoutMs: number): void {
    let until = performance.now() + timeoutMs;
    for (const tracee of tracees) this.interrupt(tracee);
    for (let waiting = tracees, rounds = 0; waiting.length > 0; rounds++) {
      for (const tracee of waiting) {
        if (tracee.state === 'running') this.#check(tracee);
        if ((tracee.state as Tracee['state']) === 'stopped') this.detach(tracee);
      }
      const left = waiting.filter(({ state }) => state !== 'gone');
      // Each may take the whole time, as if it were waited for alone: one that is left behind sees an EINTR.
      if (left.length < waiting.length) until = performance.now() + timeoutMs;
      waiting = left;
      if (rounds < 200) continue;
      if (performance.now() > until) return;
      sleepSync(0.2);
    }
  }

  /** Collects what has happened to running threads since the last call, without waiting. */
  poll(): readonly TracerEvent[] {
    this.attend();
    const events = this.#events;
    this.#events = [];
    return events;
  }

  /**
   * Lets threads that have stopped by themselves go on, and notes for {@link poll} what happened: one that creates another
   * is held until then, so whoever works for longer calls it now and then.
   */
  attend(): void {
    for (const tracee of [...this.tracees.values()]) {
      if (tracee.state === 'running' && !tracee.isBorrowed && this.#check(tracee)) this.#settle(tracee);
    }
    this.#lookedAtMs = performance.now();
  }

  /** Fetches the registers of a stopped thread. Returns false when it is gone. */
  fetchRegisters(tracee: Tracee): boolean {
    const errno = native.tryGetRegisters(tracee.tid, tracee.registers);
    if (errno === native.ESRCH) {
      this.#check(tracee);
      return false;
    }
    if (errno !== 0) throw new native.PtraceError('PTRACE_GETREGS', tracee.tid, errno);
    return true;
  }

  /**
   * Lets a stopped thread run to its next system-call entry or exit and returns the stop that followed. Never by
   * single steps: the SIGTRAP of a step is delivered, and kills, when the tracer dies while the thread is stopped at it.
   */
  runToSyscallStop(tracee: Tracee, timeoutMs: number): WaitEvent {
    this.#resumeToSyscall(tracee);
    if (this.collect(tracee, timeoutMs) === 'running') {
      throw new LivegraftError('thread-stuck', `thread ${tracee.tid} made no progress in ${timeoutMs} ms`, {
        remedy: 'the machine may be overloaded: try again',
        details: { tid: tracee.tid },
      });
    }
    return tracee.stop;
  }

  /**
   * Lets a borrowed thread run to its next stop, as {@link runToSyscallStop} does, while the others are attended to: it may
   * need them. Returns undefined, with the thread stopped by us, when time is over.
   */
  runBesideOthers(tracee: Tracee, timeoutMs: number): WaitEvent | undefined {
    this.#resumeToSyscall(tracee);
    const until = performance.now() + timeoutMs;
    while (this.collect(tracee, 1) === 'running') {
      this.attend();
      if (performance.now() < until) continue;
      this.interrupt(tracee);
      this.collect(tracee, PATIENT_TIMEOUT_MS);
      return undefined;
    }
    return tracee.stop;
  }

  #resumeToSyscall(tracee: Tracee): void {
    // Few signals get through to a borrowed thread, whose mask holds them off: SIGSTOP does.
    const signal = tracee.stop.kind === 'signalStop' ? tracee.stop.signal : 0;
    tracee.state = 'running';
    native.ptrace(native.PTRACE_SYSCALL, 'PTRACE_SYSCALL', tracee.tid, 0, signal);
  }

  /** Looks once whether the thread has stopped or ended, and notes it. True when its state changed. */
  #check(tracee: Tracee): boolean {
    const status = native.pollWait(tracee.tid);
    if (status === undefined) return false;
    if (status === 'none') {
      this.#markGone(tracee);
      return true;
    }
    const event = parseWaitStatus(status);
    if (tracee.interruptPending) {
      tracee.interruptPending = false;
      tracee.mayTrapAgain = true;
    }
    switch (event.kind) {
      case 'exited':
      case 'killed':
        this.#markGone(tracee);
        return true;
      case 'interruptStop':
      case 'groupStop':
        tracee.mayTrapAgain = false;
        tracee.state = 'stopped';
        tracee.stop = event;
        if (tracee.birth !== undefined) this.#welcome(tracee, tracee.birth);
        this.#keepSyscallRestartable(tracee);
        return true;
      case 'cloneStop':
      case 'forkStop':
      case 'vforkStop':
        tracee.state = 'stopped';
        tracee.stop = event;
        this.#adopt(tracee, event.kind);
        return true;
      case 'execStop':
        tracee.state = 'stopped';
        tracee.stop = event;
        this.#events.push({ kind: 'exec', tracee });
        return true;
      case 'syscallStop':
        tracee.syscallStopsWanted = Math.max(0, tracee.syscallStopsWanted - 1);
        tracee.state = 'stopped';
        tracee.stop = event;
        return true;
      case 'signalStop':
        this.signalStops += 1;
        tracee.state = 'stopped';
        tracee.stop = event;
        return true;
    }
  }

  /** Nobody waits for this stop: report it where it matters, else let the thread go on. */
  #settle(tracee: Tracee): void {
    if (tracee.state !== 'stopped') return;
    if (tracee.stop.kind === 'syscallStop') this.#events.push({ kind: 'syscallStop', tracee });
    else if (tracee.stop.kind !== 'execStop') this.resume(tracee);
  }

  #markGone(tracee: Tracee): void {
    tracee.state = 'gone';
    this.tracees.delete(tracee.tid);
    this.#events.push({ kind: 'gone', tracee });
  }

  #adopt(parent: Tracee, stop: 'cloneStop' | 'forkStop' | 'vforkStop'): void {
    this.longestCreationMs = Math.max(this.longestCreationMs, performance.now() - this.#lookedAtMs);
    const tid = native.getEventMessage(parent.tid);
    const how = stop === 'cloneStop' ? 'thread' : stop === 'forkStop' ? 'process' : 'vfork';
    const child = new Tracee(tid, how === 'process' ? tid : parent.pid, how === 'vfork');
    child.birth = { parent, how };
    this.tracees.set(tid, child);
    // It was attached by the kernel and stops before its first instruction in user mode. Where processors are scarce
    // that takes a while; whoever sees the stop then, it is welcomed there.
    if (this.collect(child, FIRST_STOP_TIMEOUT_MS) === 'stopped') this.resume(child);
  }

  /** In the very first stop of a new thread. */
  #welcome(child: Tracee, { parent, how }: Birth): void {
    child.birth = undefined;
    this.onCreated(child, parent, how);
    this.#events.push({ kind: 'created', tracee: child, parent, how });
  }

  /**
   * Some system calls answer any wake-up with EINTR, also the one that our stop causes (signal(7), "Interruption of
   * system calls … by stop signals"). Turned into ERESTARTNOHAND, the kernel itself decides when the thread goes on:
   * restart where no signal handler runs, EINTR where one does.
   */
  #keepSyscallRestartable(tracee: Tracee): void {
    if (!this.fetchRegisters(tracee)) return;
    const syscall = readRegister(tracee.registers, ORIG_RAX);
    if (syscall < 0 || readRegister(tracee.registers, RAX) !== -EINTR) return;
    if (!interruptedSyscallRestarts(syscall)) return;
    native.pokeRegister(tracee.tid, RAX, -ERESTARTNOHAND);
    this.fetchRegisters(tracee);
  }
}

function seizeError(pid: number, tid: number, errno: number): LivegraftError {
  const tracer = Number(readStatus(pid)?.get('TracerPid') ?? 0);
  if (tracer > 0) {
    return new LivegraftError('already-traced', `process ${pid} is being traced by process ${tracer}`, {
      remedy: `stop that tracer (a debugger or strace), then try again`,
      details: { pid, tracer },
    });
  }
  if (errno === native.EPERM || errno === native.EACCES) {
    return new LivegraftError(
      'no-permission',
      `process ${pid}: thread ${tid} may not be traced by this user`,
      {
        remedy:
          'run livegraft as root (or with CAP_SYS_PTRACE); see also kernel.yama.ptrace_scope and prctl(PR_SET_DUMPABLE)',
        details: { pid, tid },
      },
    );
  }
  return new native.PtraceError('PTRACE_SEIZE', tid, errno);
}
