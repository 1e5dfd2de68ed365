import { setImmediate } from 'node:timers/promises';
import { SoakCount, type SoakEnd, type SoakOptions, type SoakReport } from '../soak.js';
import { readThreadStat } from './proc.js';
import type { ProcessSession } from './process-session.js';
import { ORIG_RAX, RAX, RIP, readRegister, writeRegister } from './registers.js';
import type { StackInspector } from './stack-inspector.js';
import { PATIENT_TIMEOUT_MS, sleepSync, type Tracee } from './tracer.js';

/** Between two random instants, on average. */
const INSTANT_EVERY_MS = 1;
const INSTANT_TIMEOUT_MS = 20;
/** Signals (Ctrl-C) come in only between two turns of the event loop. */
const TURN_EVERY_MS = 20;
const LONGEST_SLEEP_MS = 0.2;
const EINTR = 4;
const ENOSYS = 38;
/** 0F 05. */
const SYSCALL_BYTES = 2;

/**
 * Walks the stack of each thread at each of its system-call stops (entry and exit), and of running threads at random
 * instants, chosen by `seed`. The session's threads are seized; forked children are let go at once. Sleeping threads are never
 * interrupted: a wait that is made again starts its timeout anew. The target's end is no error: it is said in the report.
 */
export async function soakProcess(
  session: ProcessSession,
  options: SoakOptions & { readonly seed: number },
): Promise<SoakReport> {
  return new ProcessSoak(session, options).run();
}

class ProcessSoak {
  readonly #session: ProcessSession;
  readonly #inspector: StackInspector;
  readonly #count: SoakCount;
  readonly #random: () => number;
  /** Forked children that have not stopped yet to be let go. */
  readonly #leaving = new Set<Tracee>();
  #nextInstantMs = 0;
  #nextTurnMs = 0;
  #end: SoakEnd | undefined;

  constructor(session: ProcessSession, options: SoakOptions & { readonly seed: number }) {
    this.#session = session;
    this.#inspector = session.inspector();
    this.#count = new SoakCount(options);
    this.#random = randomNumbers(options.seed);
  }

  async run(): Promise<SoakReport> {
    const { tracer } = this.#session;
    this.#inspector.prepare(() => tracer.attend());
    // In its first stop, so that not one of its system calls is missed.
    tracer.onCreated = (tracee, _parent, how) => {
      if (how === 'thread') watch(tracee);
    };
    for (const tracee of [...tracer.tracees.values()]) {
      watch(tracee);
      // What it does until its next stop of any kind goes unwatched, and one that sleeps may have no other for long.
      this.#walkNow(tracee);
    }
    for (let idle = 0; this.#isToGoOn(); ) {
      const isBusy = this.#takeStops() || this.#takeInstant();
      idle = isBusy ? 0 : idle + 1;
      if (idle > 50) sleepSync(Math.min(0.02 * (idle - 50), LONGEST_SLEEP_MS));
      await this.#takeTurn();
    }
    tracer.onCreated = () => {};
    for (const tracee of tracer.tracees.values()) tracee.syscallStopsWanted = 0;
    return this.#count.report(this.#end ?? 'time');
  }

  #isToGoOn(): boolean {
    this.#end ??= this.#count.end();
    if (this.#end === undefined && !this.#hasThreads()) this.#end = 'exit';
    return this.#end === undefined;
  }

  #isOurs(tracee: Tracee): boolean {
    return tracee.pid === this.#session.pid && !tracee.isVforkChild;
  }

  #hasThreads(): boolean {
    for (const tracee of this.#session.tracer.tracees.values()) if (this.#isOurs(tracee)) return true;
    return false;
  }

  /** True when there were any. */
  #takeStops(): boolean {
    const { tracer } = this.#session;
    const events = tracer.poll();
    for (const { kind, tracee } of events) {
      if (kind === 'syscallStop') this.#atSyscallStop(tracee);
      else if (kind === 'created' && !this.#isOurs(tracee)) this.#leaving.add(tracee);
      else if (kind === 'exec') this.#atExec(tracee);
      else if (kind === 'gone') this.#leaving.delete(tracee);
    }
    for (const tracee of this.#leaving) this.#letGo(tracee);
    return events.length > 0;
  }

  #atSyscallStop(tracee: Tracee): void {
    // Another look may have moved it on since.
    if (tracee.state !== 'stopped' || tracee.stop.kind !== 'syscallStop') return;
    if (this.#isOurs(tracee)) this.#walk(tracee, false);
    this.#goOn(tracee);
  }

  /**
   * A call that our interrupt has ended with EINTR is made again only out of a trap (see {@link Tracer}), and the stop
   * at its end has cleared the one that was under way: a new one follows.
   */
  #goOn(tracee: Tracee): void {
    const { tracer } = this.#session;
    if (
      tracee.stop.kind === 'syscallStop' &&
      tracer.fetchRegisters(tracee) &&
      readRegister(tracee.registers, RAX) === -EINTR
    )
      tracer.leadIntoTrap(tracee, PATIENT_TIMEOUT_MS);
    // An exec is told of by an event, which lets it go.
    if (tracee.state === 'stopped' && tracee.stop.kind !== 'execStop') tracer.resume(tracee);
  }

  #atExec(tracee: Tracee): void {
    if (this.#isOurs(tracee)) this.#end ??= 'exec';
    this.#leaving.delete(tracee);
    this.#session.tracer.detach(tracee);
  }

  #letGo(tracee: Tracee): void {
    const { tracer } = this.#session;
    tracer.interrupt(tracee);
    const state = tracer.collect(tracee, 1);
    if (state === 'stopped') tracer.detach(tracee);
    if (tracee.state === 'gone') this.#leaving.delete(tracee);
  }

  /** True when it was time for one, and a thread ran. */
  #takeInstant(): boolean {
    const now = performance.now();
    if (now < this.#nextInstantMs) return false;
    this.#nextInstantMs = now + 2 * INSTANT_EVERY_MS * this.#random();
    const tracees = [...this.#session.tracer.tracees.values()];
    const first = Math.floor(this.#random() * tracees.length);
    for (let i = 0; i < Math.min(tracees.length, THREADS_LOOKED_AT); i++) {
      const tracee = tracees[(first + i) % tracees.length] as Tracee;
      if (!this.#isOurs(tracee) || !this.#isRunning(tracee)) continue;
      this.#walkNow(tracee);
      return true;
    }
    return false;
  }

  #isRunning(tracee: Tracee): boolean {
    return tracee.state === 'running' && readThreadStat(this.#session.pid, tracee.tid)?.state === 'R';
  }

  #walkNow(tracee: Tracee): void {
    const { tracer } = this.#session;
    tracer.interrupt(tracee);
    // One that does not stop now does later: poll() lets it go on.
    if (tracer.collect(tracee, INSTANT_TIMEOUT_MS) !== 'stopped') return;
    if (tracee.stop.kind === 'execStop') return;
    this.#walk(tracee, true);
    this.#goOn(tracee);
  }

  #walk(tracee: Tracee, isInstant: boolean): void {
    if (!this.#session.tracer.fetchRegisters(tracee)) return;
    if (tracee.stop.kind === 'syscallStop') standAtSyscall(tracee.registers);
    const walk = this.#inspector.walk(tracee);
    // A thread that was killed in the middle of it has no stack any more.
    if (!walk.reliable && !this.#session.tracer.fetchRegisters(tracee)) return;
    this.#count.note(tracee.tid, { isInstant }, walk, () =>
      walk.reliable ? '' : this.#inspector.placeOf(walk),
    );
  }

  async #takeTurn(): Promise<void> {
    const now = performance.now();
    if (now < this.#nextTurnMs) return;
    this.#nextTurnMs = now + TURN_EVERY_MS;
    await setImmediate();
  }
}

/** Reading the states of all of 1,000 threads each time would leave no time for their stops. */
const THREADS_LOOKED_AT = 8;

/**
 * At the entry of a system call the thread has the `syscall` instruction yet to do. What lies behind it need not be the
 * same function: rt_sigreturn never comes back. (A call that has answered ENOSYS is taken for one that begins: its frame is
 * the same.)
 */
function standAtSyscall(registers: Buffer): void {
  if (readRegister(registers, ORIG_RAX) >= 0 && readRegister(registers, RAX) === -ENOSYS)
    writeRegister(registers, RIP, readRegister(registers, RIP) - SYSCALL_BYTES);
}

function watch(tracee: Tracee): void {
  tracee.syscallStopsWanted = Number.POSITIVE_INFINITY;
}

/** Numbers from 0 up to 1, the same ones for the same seed (mulberry32). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
