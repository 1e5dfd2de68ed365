import { LivegraftError } from '../../base/errors.js';
import type { PatchState, TargetEvent, TaskId, TaskInfo } from '../../engine/target.js';
import { ProcessMemory } from './memory.js';
import { isRunning } from './proc.js';
import type { ProcessSpace } from './process-space.js';
import { TaskRecord } from './task-record.js';
import type { Tracee, Tracer, TracerEvent } from './tracer.js';

export interface RosterOptions {
  readonly tracer: Tracer;
  readonly space: ProcessSpace;
  /** Whether the entries in a process that fork has just copied from `parent` choose by task. */
  readonly isInTransition: (memory: ProcessMemory, parent: ProcessSpace) => boolean;
  /** A task has ended, or has left the transition. */
  readonly onForget: (record: TaskRecord) => void;
  /** A child that was forked without a part in the transition, and has its parent's slot. It is stopped, its registers fetched. */
  readonly onStranger: (record: TaskRecord) => void;
}

/**
 * Who takes part in a transition: the threads of a process and of the children that it forks meanwhile. New ones have
 * the state of their parent (DESIGN.md section 2, rule 2); what happens to them becomes the engine's events.
 */
export class TaskRoster {
  readonly #tracer: Tracer;
  readonly #spaces: ProcessSpace[];
  readonly #name: string;
  readonly #options: RosterOptions;
  #events: TargetEvent[] = [];
  #goneError: LivegraftError | undefined;

  constructor(options: RosterOptions) {
    this.#options = options;
    this.#tracer = options.tracer;
    this.#spaces = [options.space];
    this.#name = `process ${options.space.pid}`;
    this.adoptThreads(options.space);
    this.#tracer.onCreated = (tracee, parent, how) => this.#adoptCreated(tracee, parent, how);
  }

  /** The process itself, and its children. */
  get spaces(): readonly ProcessSpace[] {
    return this.#spaces;
  }

  /** Takes in all seized threads that are not known yet. */
  adoptThreads(space: ProcessSpace): void {
    for (const tracee of this.#tracer.tracees.values()) {
      if (tracee.pid === space.pid && !tracee.isVforkChild && !space.tasks.has(tracee.tid))
        space.adopt(tracee);
    }
  }

  find(task: TaskId): TaskRecord | undefined {
    // See TaskRecord: `PID/TID` in a forked child. Its last part is the thread's.
    const tid = Number(task.slice(task.lastIndexOf('/') + 1));
    for (const space of this.#spaces) {
      const record = space.tasks.get(tid);
      if (record?.id === task) return record;
    }
    return undefined;
  }

  infoOf(record: TaskRecord): TaskInfo {
    const state: PatchState = record.space.slots.stateOf(record.tracee) === 1 ? 'patched' : 'unpatched';
    return { id: record.id, name: record.name, state };
  }

  forget(record: TaskRecord): void {
    this.#options.onForget(record);
    record.space.slots.release(record.tracee);
    record.space.tasks.delete(record.tracee.tid);
  }

  /** Takes in what has happened since the last call. Throws when the process has ended or replaced itself. */
  pump(): void {
    for (const event of this.#tracer.poll()) this.#note(event);
    this.expectAlive();
  }

  expectAlive(): void {
    if (this.#goneError !== undefined) throw this.#goneError;
  }

  addEvent(event: TargetEvent): void {
    this.#events.push(event);
  }

  get hasEvents(): boolean {
    return this.#events.length > 0;
  }

  takeEvents(): readonly TargetEvent[] {
    const events = this.#events;
    this.#events = [];
    return events;
  }

  /**
   * A process may be killed at any instant, and its memory is gone at once. Then the answer is undefined: a forked
   * child is forgotten, and the target's own end is kept for the next call to throw.
   */
  unlessGone<T>(space: ProcessSpace, work: () => T): T | undefined {
    try {
      return work();
    } catch (error) {
      if (!(error instanceof LivegraftError) || !GONE_CODES.has(error.code)) throw error;
      // It may have been dropped in the middle of the work.
      if (this.#spaces.includes(space) && isRunning(space.pid)) throw error;
      for (const record of [...space.tasks.values()]) this.forget(record);
      this.#dropEmptySpaces();
      return undefined;
    }
  }

  #adoptCreated(tracee: Tracee, parent: Tracee, how: 'thread' | 'process' | 'vfork'): void {
    const parentRecord = this.#recordOf(parent);
    if (parentRecord === undefined) return;
    if (how === 'vfork') {
      this.unlessGone(parentRecord.space, () => this.#giveSlotOfItsOwn(tracee, parentRecord.space));
      return;
    }
    const space = how === 'process' ? this.#adoptFork(tracee, parentRecord.space) : parentRecord.space;
    if (space === undefined) return;
    const record = space.adopt(tracee);
    this.unlessGone(space, () => this.#giveParentsState(record, parentRecord, how));
  }

  /**
   * A vforked child is no task of the transition: its parent waits for its end. In its parent's slot it would be taken for
   * the parent, should it come to the barrier.
   */
  #giveSlotOfItsOwn(tracee: Tracee, { slots, registry }: ProcessSpace): void {
    if (slots.area.kind !== 'gsBase' || registry.transition === undefined) return;
    if (this.#tracer.fetchRegisters(tracee) && slots.hasSlot(tracee))
      slots.assign(tracee, slots.ownState(tracee));
  }

  /** A child that is forked while the entries don't choose has no part in the transition: it keeps the version that it has. */
  #adoptFork(tracee: Tracee, parent: ProcessSpace): ProcessSpace | undefined {
    const memory = new ProcessMemory(tracee.pid);
    try {
      const isInTransition = this.#options.isInTransition(memory, parent);
      if (isInTransition || (this.#tracer.fetchRegisters(tracee) && parent.slots.hasSlot(tracee))) {
        const space = parent.fork(tracee.pid, memory);
        if (!isInTransition) this.#options.onStranger(new TaskRecord(space, tracee));
        else {
          this.#spaces.push(space);
          return space;
        }
      }
    } catch (error) {
      if (!(error instanceof LivegraftError)) throw error;
    }
    memory.close();
    return undefined;
  }

  #giveParentsState(record: TaskRecord, parentRecord: TaskRecord, how: 'thread' | 'process'): void {
    const { space, tracee } = record;
    if (!this.#tracer.fetchRegisters(tracee)) return;
    // Before the entries choose, states are yet to be given.
    const phase = space.registry.transition?.phase;
    if (phase === undefined || phase === 'installing') return;
    // Rule 2: the state that its parent had when it was created. Since then the parent may have switched itself, and a
    // forked child has the stack that it had before.
    const isCopied = space.slots.area.kind === 'gsBase' || how === 'process';
    const { slots } = parentRecord.space;
    space.slots.assign(tracee, isCopied ? space.slots.ownState(tracee) : slots.stateOf(parentRecord.tracee));
    this.#events.push({ kind: 'taskCreated', task: this.infoOf(record), parent: parentRecord.id });
  }

  #recordOf(tracee: Tracee): TaskRecord | undefined {
    for (const space of this.#spaces) {
      const record = space.tasks.get(tracee.tid);
      if (record?.tracee === tracee) return record;
    }
    return undefined;
  }

  #note(event: TracerEvent): void {
    const record = this.#recordOf(event.tracee);
    switch (event.kind) {
      case 'created':
        return;
      case 'gone':
        if (record === undefined) {
          this.#releaseSlot(event.tracee);
          return;
        }
        this.forget(record);
        this.#events.push({ kind: 'taskExited', task: record.id });
        this.#dropEmptySpaces();
        return;
      case 'syscallStop':
        if (record === undefined) this.#tracer.resume(event.tracee);
        else this.#events.push({ kind: 'taskMoved', task: record.id });
        return;
      case 'exec':
        this.#noteExec(event.tracee, record);
        return;
    }
  }

  #noteExec(tracee: Tracee, record: TaskRecord | undefined): void {
    if (record !== undefined) {
      const { space } = record;
      for (const other of [...space.tasks.values()]) {
        this.forget(other);
        this.#events.push({ kind: 'taskExited', task: other.id });
      }
      if (!space.isFork) {
        this.#goneError = new LivegraftError(
          'target-replaced',
          `${this.#name} has executed another program`,
          {
            remedy: 'nothing of the patch is left in it; build a patch for the new program if it needs one',
            details: { pid: space.pid },
          },
        );
      }
    }
    this.#releaseSlot(tracee);
    this.#tracer.detach(tracee);
    this.#dropEmptySpaces();
  }

  /** Of a vforked child, whose space has no record of it. */
  #releaseSlot(tracee: Tracee): void {
    for (const { slots } of this.#spaces) slots.release(tracee);
  }

  #dropEmptySpaces(): void {
    for (const space of [...this.#spaces]) {
      if (space.tasks.size > 0) continue;
      if (space.isFork) {
        this.#spaces.splice(this.#spaces.indexOf(space), 1);
        space.memory.close();
      } else {
        this.#goneError ??= new LivegraftError('target-gone', `${this.#name} has ended`, {
          remedy: 'nothing was left behind; give the pid of a running process',
          details: { pid: space.pid },
        });
      }
    }
  }
}

const GONE_CODES = new Set(['memory-unreadable', 'memory-unwritable', 'ptrace-failed']);
