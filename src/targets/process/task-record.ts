import { type StragglerReason, type TaskId, taskId } from '../../engine/target.js';
import type { StackCopy } from './deep-stack.js';
import { readBlockingSyscall, readThreadStat, readTimeslices } from './proc.js';
import type { ProcessSpace } from './process-space.js';
import type { Tracee } from './tracer.js';

/** A thread as a task of the transition. */
export class TaskRecord {
  readonly id: TaskId;
  readonly name: string;
  readonly space: ProcessSpace;
  readonly tracee: Tracee;
  /** Why it was last refused, and how often it had been scheduled by then. */
  refusal:
    | { readonly reason: StragglerReason; readonly timeslices: number | undefined; readonly atMs: number }
    | undefined;

  /** The state that it is known to have been given, or to have set itself. */
  switchedTo: 0 | 1 | undefined;

  /** Of a thread that ran when it was stopped for the install: its walk is rehearsed before it is held for it. */
  stackCopy: StackCopy | undefined;

  constructor(space: ProcessSpace, tracee: Tracee) {
    this.space = space;
    this.tracee = tracee;
    this.id = taskId(space.isFork ? `${space.pid}/${tracee.tid}` : `${tracee.tid}`);
    this.name = readThreadStat(space.pid, tracee.tid)?.name ?? '?';
  }

  /**
   * Whether the thread can have moved since it was refused. Our own stop wakes it twice (into the trap, and back to
   * sleep); every further time slice is its own. Looked at afresh now and then all the same.
   */
  mayHaveMoved(nowMs: number): boolean {
    if (this.refusal === undefined || nowMs - this.refusal.atMs > RECHECK_AFTER_MS) return true;
    if (this.refusal.timeslices === undefined) return true;
    // A thread that keeps its processor moves without a new time slice.
    if (readBlockingSyscall(this.space.pid, this.tracee.tid) === undefined) return true;
    const now = readTimeslices(this.space.pid, this.tracee.tid);
    return now === undefined || now - this.refusal.timeslices > OWN_WAKEUPS;
  }

  /**
   * Whether it has a processor or waits for one, sleeps so that a stop wakes it, or does not even then: in
   * `vfork`, as long as the child runs on its memory, or for a disk.
   */
  activity(): 'runs' | 'sleeps' | 'stuck' {
    if (this.tracee.state !== 'running') return 'sleeps';
    const state = readThreadStat(this.space.pid, this.tracee.tid)?.state;
    return state === 'R' ? 'runs' : state === 'D' ? 'stuck' : 'sleeps';
  }

  noteRefusal(reason: StragglerReason, timeslices: number | undefined, atMs: number): void {
    this.refusal = { reason, timeslices, atMs };
  }
}

const OWN_WAKEUPS = 2;
const RECHECK_AFTER_MS = 1000;
