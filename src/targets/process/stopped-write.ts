import { LivegraftError } from '../../base/errors.js';
import {
  areCurrent,
  type EntryWrite,
  isInsideWrites,
  rehearseEntries,
  writeEntries,
} from './entry-writer.js';
import type { ProcessSpace } from './process-space.js';
import { RIP, readRegister } from './registers.js';
import type { TaskRecord } from './task-record.js';
import { sleepSync, spinSync, type Tracer } from './tracer.js';

export const STOP_TIMEOUT_MS = 300;
const ATTEMPTS = 60;
const LONGEST_PAUSE_MS = 50;

/**
 * Sleeping threads that are woken together. Each needs a processor for some microseconds to get from its wait into the
 * trap, which a running thread of the target loses. One by one, each would wait for the scheduler on a crowded machine;
 * all at once, a running thread would lose the sum of them in one piece.
 */
const BATCH = 8;
/** Between two threads that are let go: long enough for one to be back in its wait. */
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
  /**
   * Called once for each stopped thread, before anything is written, its registers fetched; once an attempt. `ran`: it
   * was running, and is being held now.
   */
  readonly whenStopped: (record: TaskRecord, ran: boolean) => void;
  /** Called once for each stopped thread, after all is written: must resume or detach it. */
  readonly letGo: (record: TaskRecord) => void;
}

/**
 * Stops every thread of a space and writes entries, when no thread is inside the bytes to be overwritten. All or none
 * is written. Sleeping threads are stopped first, while the others run on; these are stopped last and let go at once,
 * so that the pause of a busy thread does not grow with the number of threads that sleep.
 * Throws `install-timeout` when it can't be done in a number of tries, every thread running again.
 */
export function writeWhileStopped(options: StoppedWrite): void {
  const { tracer, space, letGo } = options;
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    options.expectAlive();
    const round = stopForWrite(options);
    if (round.written) {
      for (const record of round.runners) letGo(record);
      for (const record of round.sleepers) {
        letGo(record);
        spinSync(LET_GO_SPACING_MS);
      }
      return;
    }
    for (const record of [...round.runners, ...round.sleepers]) tracer.resume(record.tracee);
    // On a busy machine a thread may not get a processor for long: it would be met at the same place again.
    sleepSync(Math.min(0.2 * 1.5 ** attempt, LONGEST_PAUSE_MS));
  }
  throw new LivegraftError(
    'install-timeout',
    `process ${space.pid}: its threads could not all be stopped outside of the bytes to change, in ${ATTEMPTS} tries`,
    {
      remedy:
        'a thread may be in uninterruptible sleep (a vfork parent, a hanging disk): see livegraft stack --pid, and try again',
      details: { pid: space.pid },
    },
  );
}

interface Round {
  readonly written: boolean;
  /** Stopped threads: those that ran, those that slept. */
  readonly runners: readonly TaskRecord[];
  readonly sleepers: readonly TaskRecord[];
}

function stopForWrite({ tracer, space, plan, stays, whenStopped }: StoppedWrite): Round {
  const runners: TaskRecord[] = [];
  const sleepers: TaskRecord[] = [];
  const known = new Set<TaskRecord>();
  let adopted = space.adopted;
  for (const record of space.tasks.values()) {
    known.add(record);
    (record.runsNow() ? runners : sleepers).push(record);
  }
  const late: TaskRecord[] = [];
  const stop = (records: readonly TaskRecord[], ran: boolean) => {
    late.push(...stopAll(tracer, records, (record) => whenStopped(record, ran)));
  };
  for (let i = 0; i < sleepers.length; i += BATCH) stop(sleepers.slice(i, i + BATCH), false);
  const writes = plan();
  rehearseEntries(space.memory, writes.filter(stays));
  const isStopped = (record: TaskRecord) => record.tracee.state === 'stopped';
  const isInside = (record: TaskRecord) =>
    isStopped(record) && isInsideWrites(writes, readRegister(record.tracee.registers, RIP));
  // What can be known of the sleeping ones is looked at before a running one is held.
  let mayWrite = late.length === 0 && !sleepers.some(isInside);
  if (mayWrite) stop(runners, true);
  // Threads that were created meanwhile: their creators are stopped now, so this comes to an end.
  while (mayWrite && late.length === 0 && space.adopted !== adopted) {
    adopted = space.adopted;
    const fresh = [...space.tasks.values()].filter((record) => !known.has(record));
    stop(fresh, true);
    runners.push(...fresh);
    for (const record of fresh) known.add(record);
  }
  mayWrite &&= late.length === 0 && !runners.some(isInside) && areCurrent(space.memory, writes);
  if (mayWrite) writeEntries(space.memory, writes);
  return { written: mayWrite, runners: runners.filter(isStopped), sleepers: sleepers.filter(isStopped) };
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
    if (tracer.collect(record.tracee, STOP_TIMEOUT_MS) === 'running') late.push(record);
    else if (record.tracee.state === 'stopped' && tracer.fetchRegisters(record.tracee)) whenStopped(record);
  }
  return late;
}
