import { LivegraftError } from '../../base/errors.js';
import {
  areCurrent,
  type EntryWrite,
  isInsideWrites,
  rehearseEntries,
  writeEntries,
} from './entry-writer.js';
import { beginHold, type HoldLog, type HoldStart } from './hold-log.js';
import { readBlockingSyscall } from './proc.js';
import type { ProcessSpace } from './process-space.js';
import { RIP, readRegister } from './registers.js';
import { blockingCallName } from './syscalls.js';
import type { TaskRecord } from './task-record.js';
import { sleepSync, spinUntil, type Tracer } from './tracer.js';

const STOP_TIMEOUT_MS = 300;
/** So often a thread that does not stop is looked at: one that sleeps and can't be woken is not waited for. */
const STUCK_LOOK_MS = 10;
/** Whatever the timeout. A thread that is stuck holds up each try for a while. */
const FEWEST_ATTEMPTS = 60;
const FEWEST_ATTEMPTS_STUCK = 3;
/** From then on it is said who is waited for. */
const TOLD_AFTER_MS = 500;
const LONGEST_PAUSE_MS = 50;

/**
 * Sleeping threads that are woken together. Each needs a processor for some microseconds to get from its wait into the
 * trap, which a running thread of the target loses. One by one, each would wait for the scheduler on a crowded machine;
 * all at once, a running thread would lose the sum of them in one piece.
 */
const BATCH = 8;
/** The same where each is let go at once, but the last one waits while the others are looked at. */
const VISITED_TOGETHER = 4;
/** From one thread that is let go to the next: long enough for one to be back in its wait. */
const LET_GO_SPACING_MS = 0.01;

export interface StoppedWrite {
  readonly tracer: Tracer;
  readonly space: ProcessSpace;
  /** Plans the writes afresh in every attempt. */
  readonly plan: () => readonly EntryWrite[];
  /** Whether the object of a write stays: what may be unloaded meanwhile is not written to while threads run. */
  readonly stays: (write: EntryWrite) => boolean;
  /** Throws when the target has gone. */
  readonly expectAlive: () => void;
  /** How long to go on trying, a few tries in any case. */
  readonly timeoutMs: number;
  readonly holds: HoldLog;
  /** Told when it takes long. */
  readonly notice: (text: string) => void;
  /**
   * Called for each stopped thread, before anything is written, its registers fetched; once an attempt. All are being held
   * meanwhile. `ran`: it was running.
   */
  readonly whenStopped: (record: TaskRecord, ran: boolean) => void;
  /** Called once for each stopped thread, after all is written: must resume or detach it. */
  readonly letGo: (record: TaskRecord) => void;
}

/**
 * Stops every thread of a space and writes entries, when no thread is inside the bytes to be overwritten. All or none
 * is written. Sleeping threads are stopped first, while the others run on; these are stopped last and let go at once,
 * so that the pause of a busy thread does not grow with the number of threads that sleep. As long as one is stuck in
 * the kernel, no other is held.
 * Throws `install-timeout` when it can't be done in time, every thread running again.
 */
export function writeWhileStopped(options: StoppedWrite): void {
  const { tracer, space, letGo } = options;
  const start = performance.now();
  const until = start + options.timeoutMs;
  let isTold = false;
  for (let attempt = 0; ; attempt++) {
    options.expectAlive();
    const round = stopForWrite(options);
    if (round.written) {
      letAllGo(options, round.runners, 'running', 0, letGo);
      letAllGo(options, round.sleepers, 'sleeping', LET_GO_SPACING_MS, letGo);
      return;
    }
    const resume = ({ tracee }: TaskRecord) => tracer.resume(tracee);
    letAllGo(options, round.runners, 'running', 0, resume);
    letAllGo(options, round.sleepers, 'sleeping', 0, resume);
    const now = performance.now();
    const fewest = round.late.some((record) => record.activity() === 'stuck')
      ? FEWEST_ATTEMPTS_STUCK
      : FEWEST_ATTEMPTS;
    if (now > until && attempt >= fewest) throw timeoutError(space, round.late, now - start);
    if (!isTold && now > start + TOLD_AFTER_MS && round.late.length > 0) {
      isTold = true;
      options.notice(`${describeStuck(space, round.late)}: waiting for it, the others go on meanwhile`);
    }
    // On a busy machine a thread may not get a processor for long: it would be met at the same place again.
    sleepSync(Math.min(0.2 * 1.5 ** attempt, LONGEST_PAUSE_MS));
  }
}

/** Lets threads go in the order in which they were stopped, and notes for how long they were held. */
function letAllGo(
  { holds, space }: StoppedWrite,
  batches: readonly Batch[],
  what: string,
  spacingMs: number,
  letGo: (record: TaskRecord) => void,
): void {
  const count = batches.reduce((sum, { records }) => sum + records.length, 0);
  for (const { records, since } of batches) {
    for (const record of records) {
      if (record.tracee.state !== 'stopped') continue;
      const until = performance.now() + spacingMs;
      letGo(record);
      spinUntil(until);
    }
    holds.end(
      `write ${what}`,
      since,
      () => `${count} ${what} ${count === 1 ? 'thread was' : 'threads were'}`,
      () => `all ${space.tasks.size} threads were stopped to change the entries of functions`,
    );
  }
}

function timeoutError(space: ProcessSpace, late: readonly TaskRecord[], ms: number): LivegraftError {
  const tries = `in ${(ms / 1000).toFixed(1)} s`;
  return new LivegraftError(
    'install-timeout',
    late.length > 0
      ? `process ${space.pid}: ${describeStuck(space, late)} and could not be stopped ${tries}`
      : `process ${space.pid}: its threads could not all be stopped outside of the bytes to change ${tries}`,
    {
      remedy:
        late.length > 0
          ? 'wait until it has left the system call (a vfork child that executes its program, a disk that answers), or give a longer --timeout'
          : 'the machine may be overloaded: try again, or give a longer --timeout',
      details: { pid: space.pid, ...(late[0] === undefined ? {} : { tid: late[0].tracee.tid }) },
    },
  );
}

/** "thread 12 (name) is …", and how many more. */
function describeStuck(space: ProcessSpace, [first, ...more]: readonly TaskRecord[]): string {
  if (first === undefined) return '';
  const { tid } = first.tracee;
  const others = more.length === 0 ? '' : ` (and ${more.length} more)`;
  return `thread ${tid} (${first.name})${others} ${stuckReason(space.pid, first)}`;
}

/** Why a thread did not stop, as the end of a sentence about it. */
export function stuckReason(pid: number, record: TaskRecord): string {
  if (record.activity() !== 'stuck') return 'did not get a processor to stop on';
  const call = readBlockingSyscall(pid, record.tracee.tid);
  const where = call === undefined || call.number < 0 ? '' : ` in ${blockingCallName(call.number)}`;
  return `is in uninterruptible sleep${where}`;
}

/** Threads that were stopped together. */
interface Batch {
  readonly since: HoldStart;
  readonly records: readonly TaskRecord[];
}

interface Round {
  readonly written: boolean;
  /** Those that could not be stopped. */
  readonly late: readonly TaskRecord[];
  /** Those that ran, those that slept. */
  readonly runners: readonly Batch[];
  readonly sleepers: readonly Batch[];
}

function stopForWrite({ tracer, space, plan, stays, whenStopped }: StoppedWrite): Round {
  const found = { runs: [] as TaskRecord[], sleeps: [] as TaskRecord[], stuck: [] as TaskRecord[] };
  const known = new Set(space.tasks.values());
  let { adopted } = space;
  for (const record of known) found[record.activity()].push(record);
  const late: TaskRecord[] = [];
  const stop = (batches: Batch[], records: readonly TaskRecord[], ran: boolean) => {
    if (records.length === 0) return;
    batches.push({ since: beginHold(), records });
    late.push(...stopAll(tracer, records, (record) => whenStopped(record, ran)));
  };
  const [sleepers, runners]: [Batch[], Batch[]] = [[], []];
  stop(sleepers, found.stuck, false);
  for (let i = 0; i < found.sleeps.length && late.length === 0; i += BATCH)
    stop(sleepers, found.sleeps.slice(i, i + BATCH), false);
  const writes = plan();
  rehearseEntries(space.memory, writes.filter(stays));
  const isInside = ({ tracee }: TaskRecord) =>
    tracee.state === 'stopped' && isInsideWrites(writes, readRegister(tracee.registers, RIP));
  const isAnyInside = (batches: readonly Batch[]) => batches.some(({ records }) => records.some(isInside));
  // What can be known of the sleeping ones is looked at before a running one is held.
  let mayWrite = late.length === 0 && !isAnyInside(sleepers);
  if (mayWrite) stop(runners, found.runs, true);
  // Threads that were created meanwhile: their creators are stopped now, so this comes to an end.
  while (mayWrite && late.length === 0 && space.adopted !== adopted) {
    adopted = space.adopted;
    const fresh = [...space.tasks.values()].filter((record) => !known.has(record));
    stop(runners, fresh, true);
    for (const record of fresh) known.add(record);
  }
  mayWrite &&= late.length === 0 && !isAnyInside(runners) && areCurrent(space.memory, writes);
  if (mayWrite) writeEntries(space.memory, writes);
  return { written: mayWrite, late, runners, sleepers };
}

/** Interrupts all, then waits for each. Returns those that did not stop in time. */
export function stopAll(
  tracer: Tracer,
  records: readonly TaskRecord[],
  whenStopped: (record: TaskRecord) => void,
): TaskRecord[] {
  for (const record of records) if (record.tracee.state === 'running') tracer.interrupt(record.tracee);
  const late: TaskRecord[] = [];
  for (const record of records) {
    if (!isStoppedInTime(tracer, record)) late.push(record);
    else if (record.tracee.state === 'stopped' && tracer.fetchRegisters(record.tracee)) whenStopped(record);
  }
  return late;
}

/**
 * Stops threads a few at a time, and lets each go as soon as it has been looked at: no two wait for each other for long.
 * `visit` is called once for each that was stopped, its registers fetched, and must resume or detach it. Returns those
 * that did not stop in time.
 */
export function visitEach(
  tracer: Tracer,
  records: readonly TaskRecord[],
  visit: (record: TaskRecord, since: HoldStart) => void,
): TaskRecord[] {
  const late: TaskRecord[] = [];
  for (let i = 0; i < records.length; i += VISITED_TOGETHER) {
    const batch = records.slice(i, i + VISITED_TOGETHER);
    const since = beginHold();
    late.push(...stopAll(tracer, batch, (record) => visit(record, since)));
    tracer.attend();
  }
  return late;
}

/** Waits for an interrupted thread to stop, as long as it may be on its way. */
export function isStoppedInTime(tracer: Tracer, record: TaskRecord): boolean {
  const until = performance.now() + STOP_TIMEOUT_MS;
  while (tracer.collect(record.tracee, STUCK_LOOK_MS) === 'running') {
    if (performance.now() > until || record.activity() === 'stuck') return false;
  }
  return true;
}
