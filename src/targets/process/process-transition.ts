import { counted } from '../../base/counted.js';
import { LivegraftError } from '../../base/errors.js';
import type { CallbackObject } from '../../engine/callbacks.js';
import type { EntryState } from '../../engine/objects.js';
import {
  type ConsistencyModel,
  type Direction,
  type StragglerReason,
  type SwitchOutcome,
  switchesPerTask,
  type TargetEvent,
  type TaskId,
  type TaskInfo,
  type TransitionTarget,
} from '../../engine/target.js';
import type { Walked } from './deep-stack.js';
import { type EntryWrite, entryState, planEntryWrites } from './entry-writer.js';
import { beginHold, HoldLog, type HoldStart } from './hold-log.js';
import { collectGarbage } from './own-runtime.js';
import { findLeft, isWithin, type LeftObject, partsOf, restrictTo, withoutLeft } from './patch-objects.js';
import { readMappings, readTimeslices } from './proc.js';
import { type ProcessSpace, seizeAllThreads } from './process-space.js';
import type { MemoryRange, RegisteredBarrier, RegisteredPatch, RegisteredTransition } from './registry.js';
import { SlotPasses } from './slot-passes.js';
import { isStoppedInTime, stopAll, stuckReason, writeWhileStopped } from './stopped-write.js';
import { StragglerLog } from './straggler-log.js';
import type { TaskRecord } from './task-record.js';
import { TaskRoster } from './task-roster.js';
import type { Tracee, Tracer } from './tracer.js';
import { afterTransition, decidedFunction, rangesLeaving } from './trampolines.js';
import { callbacksInTransition } from './transition-callbacks.js';

/** System-call stops that a refused thread is watched for: a restarted call's entry and exit, and the next ones. */
const WATCHED_STOPS = 6;
/** Running threads whose stacks are rehearsed: there are few processors, and the code is warm after some. */
const MOST_REHEARSED = 4;
/** Sleeping ones: the first whose stack is checked is not to wait while the code for that is compiled. */
const MOST_REHEARSED_ASLEEP = 1;

export interface ProcessTransitionOptions {
  readonly patchId: string;
  readonly direction: Direction;
  readonly model: ConsistencyModel;
  /** How long to try to stop all threads where entries are written. */
  readonly timeoutMs: number;
  /** Told what an operator should know, a sentence each. */
  readonly notice: (text: string) => void;
  /** Those of the patch that take part; all without. */
  readonly objects?: readonly string[] | undefined;
  readonly onLeft?: (left: LeftObject) => void;
  /** Called now and then while the transition waits, with the process itself. */
  readonly onPoll?: ((space: ProcessSpace) => void) | undefined;
}

/** One patch's transition in one process and the children that it forks meanwhile. */
export class ProcessTransition implements TransitionTarget {
  readonly name: string;
  readonly #tracer: Tracer;
  readonly #roster: TaskRoster;
  readonly #patchId: string;
  readonly #model: ConsistencyModel;
  /** Undefined for all of the patch. */
  readonly #objects: readonly string[] | undefined;
  readonly #onLeft: (left: LeftObject) => void;
  readonly #onPoll: ((space: ProcessSpace) => void) | undefined;
  readonly #options: ProcessTransitionOptions;
  #direction: Direction;
  readonly #log: StragglerLog;
  readonly #holds = new HoldLog();
  readonly #slots: SlotPasses;
  #barrierSeenAtMs = 0;

  constructor(tracer: Tracer, space: ProcessSpace, options: ProcessTransitionOptions) {
    const { patchId, direction, model, objects, onLeft = () => {}, onPoll } = options;
    this.#options = options;
    this.#tracer = tracer;
    this.#patchId = patchId;
    this.#objects = objects;
    this.#onLeft = onLeft;
    this.#onPoll = onPoll;
    this.#direction = direction;
    this.#model = model;
    this.name = `process ${space.pid}`;
    this.#log = new StragglerLog(space, direction);
    this.#roster = new TaskRoster({
      tracer,
      space,
      isInTransition: (memory, parent) =>
        planEntryWrites(memory, this.#patchOf(parent).functions, 'choosing').length === 0,
      onForget: (record) => this.#log.forget(record),
      onStranger: (record) => this.#slots.leave(record, this.#direction),
    });
    this.#slots = new SlotPasses({
      tracer,
      roster: this.#roster,
      holds: this.#holds,
      patchId,
      objects,
      patchOf: (of) => this.#patchOf(of),
    });
  }

  get barrier(): string | undefined {
    return this.#usesBarrier ? this.#barrierOf(this.#space)?.name : undefined;
  }

  get spaces(): readonly ProcessSpace[] {
    return this.#roster.spaces;
  }

  get #space(): ProcessSpace {
    const [space] = this.#roster.spaces;
    if (space === undefined) throw new Error('a transition without its process');
    return space;
  }

  /** One for each address space: a child that forked meanwhile has what the callbacks have done so far. */
  callbackObjects(): readonly CallbackObject[] {
    return this.spaces.flatMap((space) =>
      callbacksInTransition(space, this.#patchOf(space), this.#tracer, this.#roster),
    );
  }

  install(direction: Direction): void {
    this.#direction = direction;
    const space = this.#space;
    space.inspector.prepare(() => this.#tracer.attend());
    collectGarbage();
    this.#tracer.attend();
    const before = space.registry.transition;
    const from = stateWithoutSlot(before, direction);
    // What states mean that a killed run has given out is on record until they count again.
    // Without a transition no state is read: threads that nobody will have seen begin as all others.
    if (before === undefined) {
      space.slots.setAll(from);
      space.setTransition({ ...this.#transitionEntry(), phase: 'installing' });
    }
    this.#aimBarrier(space);
    seizeAllThreads(this.#tracer, space.pid);
    this.#roster.adoptThreads(space);

    const copies = { running: MOST_REHEARSED, asleep: MOST_REHEARSED_ASLEEP };
    const give = (record: TaskRecord, ran: boolean) => {
      const { tracee } = record;
      if (copies[ran ? 'running' : 'asleep']-- > 0) record.stackCopy = space.inspector.copyStack(tracee);
      // A transition that another run left half-done has given out states that count. Once all entries choose by them,
      // so does what redirects read for a thread that was given none; in a table until all entries are final.
      const isRead =
        before?.phase === 'running' || (before?.phase === 'finishing' && space.slots.area.kind !== 'gsBase');
      const keeps = isRead || (before !== undefined && space.slots.hasSlot(tracee));
      this.#slots.give(record, keeps ? space.slots.ownState(tracee) : from, before === undefined);
    };
    if (before === undefined) this.#slots.giveAhead(space, (record) => give(record, false));
    this.#stopAndWrite(space, 'choosing', give, ({ tracee }) => {
      // All have slots of their own now. One that was stopped late may have passed the barrier in the slot of another.
      if (before !== undefined) space.slots.setState(tracee, space.slots.ownState(tracee));
      this.#tracer.resume(tracee);
    });
    space.setTransition({ ...this.#transitionEntry(), phase: 'running' });
  }

  /** Whether no entry has been changed by the install: then nothing chooses, and all can be undone. */
  isUntouched(direction: Direction): boolean {
    const space = this.#space;
    this.#dropLeft(space);
    const changed: EntryState = direction === 'patch' ? 'direct' : 'below';
    return this.#patchOf(space).functions.every((fn) => {
      const state = entryState(space.memory, fn);
      return state !== 'choosing' && state !== changed;
    });
  }

  /** After a refused install: takes the slots back. No entry was changed. */
  undoInstall(): void {
    this.#inEachSpace((space) => this.#slots.takeBackUnused(space));
  }

  tasks(): readonly TaskInfo[] {
    this.#roster.pump();
    const infos: TaskInfo[] = [];
    for (const space of this.spaces) {
      // Those that run come last: by then tables are read and code is compiled, and their stops are short.
      const records = [...space.tasks.values()].map((record) => ({
        record,
        runs: record.activity() === 'runs',
      }));
      for (const { record } of records.sort((a, b) => Number(a.runs) - Number(b.runs))) {
        const info = this.#roster.unlessGone(space, () => this.#roster.infoOf(record));
        if (info !== undefined) infos.push(info);
      }
    }
    return infos;
  }

  trySwitch(task: TaskId, to: 'unpatched' | 'patched', check: 'checked' | 'unchecked'): SwitchOutcome {
    const record = this.#roster.find(task);
    if (record === undefined || record.tracee.state === 'gone') return this.#goneOutcome(record);
    return (
      this.#roster.unlessGone(record.space, () => this.#trySwitchRecord(record, to, check)) ??
      this.#goneOutcome(record)
    );
  }

  #trySwitchRecord(
    record: TaskRecord,
    to: 'unpatched' | 'patched',
    check: 'checked' | 'unchecked',
  ): SwitchOutcome {
    const { tracee, space } = record;
    for (;;) {
      const timeslices = readTimeslices(space.pid, tracee.tid);
      const isOwnStop = tracee.state === 'stopped';
      if (tracee.state === 'running') {
        if (record.refusal !== undefined && !record.mayHaveMoved(performance.now())) {
          this.#log.noteAgain(record);
          return { kind: 'refused', reason: record.refusal.reason };
        }
        if (record.stackCopy !== undefined) space.inspector.rehearse(record.stackCopy);
        record.stackCopy = undefined;
        this.#tracer.interrupt(tracee);
        if (!isStoppedInTime(this.#tracer, record)) {
          return this.#refuse(record, unstoppable(record), timeslices);
        }
      }
      const since = beginHold();
      if ((tracee.state as Tracee['state']) === 'gone' || !this.#tracer.fetchRegisters(tracee)) {
        return this.#goneOutcome(record);
      }
      const walk =
        check === 'unchecked'
          ? undefined
          : (this.#decidedReason(record) ?? space.inspector.walkOrCopy(tracee));
      if (walk !== undefined && 'bytes' in walk) {
        this.#tracer.resume(tracee);
        this.#noteCheck(record, since, 'the top of its deep stack was walked, and all of it copied');
        space.inspector.learn(tracee, walk, () => this.#tracer.attend());
        continue;
      }
      const reason = walk === undefined || typeof walk === 'function' ? walk : this.#judge(record, walk);
      if (reason !== undefined) {
        // Our interrupt, too, ends a watched call in a system-call stop: by the kind of stop the watch would run out.
        if (!isOwnStop) tracee.syscallStopsWanted = WATCHED_STOPS;
        this.#tracer.resume(tracee);
        this.#noteCheck(record, since);
        return this.#refuse(record, reason(), timeslices);
      }
      if (check === 'unchecked') this.#recordForced(space);
      space.slots.setState(tracee, to === 'patched' ? 1 : 0);
      record.switchedTo = to === 'patched' ? 1 : 0;
      record.refusal = undefined;
      this.#log.forget(record);
      tracee.syscallStopsWanted = 0;
      this.#tracer.resume(tracee);
      this.#noteCheck(record, since, check === 'unchecked' ? 'it was switched unchecked' : undefined);
      return { kind: 'switched' };
    }
  }

  #noteCheck({ tracee, name, space }: TaskRecord, since: HoldStart, why?: string): void {
    this.#holds.end(
      why ?? 'check',
      since,
      () => `thread ${tracee.tid} (${name}) was`,
      () => why ?? `its stack of ${counted(space.inspector.framesWalked, 'frame')} was walked`,
    );
  }

  trySwitchAll(
    to: 'unpatched' | 'patched',
    check: 'checked' | 'unchecked',
  ): { switched: true } | { switched: false; refusals: ReadonlyMap<TaskId, StragglerReason> } {
    const refusals = new Map<TaskId, () => StragglerReason>();
    const stopped: TaskRecord[] = [];
    const since = beginHold();
    for (const space of this.spaces) {
      for (const record of this.#stopTogether(space)) {
        stopped.push(record);
        if (record.tracee.state === 'running') refusals.set(record.id, () => unstoppable(record));
        else if (record.tracee.state === 'stopped' && this.#tracer.fetchRegisters(record.tracee)) {
          const reason = check === 'unchecked' ? this.#decidedReason(record) : this.#checkStack(record);
          if (reason !== undefined) refusals.set(record.id, reason);
        }
      }
    }
    if (refusals.size === 0) {
      for (const space of check === 'unchecked' ? this.spaces : []) this.#recordForced(space);
      for (const record of stopped) {
        if (record.tracee.state !== 'stopped') continue;
        record.space.slots.setState(record.tracee, to === 'patched' ? 1 : 0);
        this.#log.forget(record);
      }
    }
    for (const record of stopped) this.#tracer.resume(record.tracee);
    this.#holds.end(
      'together',
      since,
      () => `${stopped.length} threads were`,
      () => `they were stopped together and their stacks checked (model ${this.#model})`,
    );
    if (refusals.size === 0) return { switched: true };
    const reasons = new Map([...refusals].map(([id, reason]) => [id, reason()]));
    for (const record of stopped) {
      const reason = reasons.get(record.id);
      if (reason !== undefined) this.#log.note(record, reason);
    }
    return { switched: false, refusals: reasons };
  }

  /** Refused threads are resumed up to their next system-call stops as it is; see {@link WATCHED_STOPS}. */
  watchTask(task: TaskId): boolean {
    return this.#roster.find(task) !== undefined;
  }

  async waitForEvents(timeoutMs: number): Promise<readonly TargetEvent[]> {
    const until = performance.now() + timeoutMs;
    for (;;) {
      const { signalStops } = this.#tracer;
      this.#roster.pump();
      this.#noteSelfSwitched();
      this.#roster.unlessGone(this.#space, () => this.#onPoll?.(this.#space));
      this.#log.saveNowAndThen();
      if (this.#roster.hasEvents || performance.now() >= until) break;
      // Yields to the event loop, where signals of the operator and the live view wait.
      // A thread that gets signals faster than it is looked at would get to nothing else.
      const waitMs = this.#tracer.signalStops > signalStops ? 0 : Math.min(1, until - performance.now());
      await new Promise((resolve) => (waitMs === 0 ? setImmediate(resolve) : setTimeout(resolve, waitMs)));
    }
    return this.#roster.takeEvents();
  }

  reverse(direction: Direction): void {
    this.#direction = direction;
    this.#log.restart();
    this.#inEachSpace((space) => {
      space.setTransition({ ...this.#transitionEntry(), phase: 'running' });
      this.#aimBarrier(space);
      for (const record of space.tasks.values()) record.refusal = undefined;
    });
  }

  finish(direction: Direction): void {
    this.#direction = direction;
    const entry: EntryState = direction === 'patch' ? 'direct' : 'below';
    const finished = new Set<ProcessSpace>();
    // Until all are stopped, a process may fork another one whose entries choose.
    for (let space = this.#space as ProcessSpace | undefined; space !== undefined; ) {
      const next = space;
      finished.add(next);
      this.#roster.unlessGone(next, () => this.#finishSpace(next, entry));
      space = this.spaces.find((other) => !finished.has(other));
    }
    this.#roster.expectAlive();
  }

  #finishSpace(space: ProcessSpace, entry: EntryState): void {
    const direction = this.#direction;
    // All have switched, and who is created now has its creator's state: so have those that are created after our death. Before
    // the record: whoever finds that goes by what all threads have.
    space.slots.setAll(direction === 'patch' ? 1 : 0);
    space.setTransition({ ...this.#transitionEntry(), phase: 'finishing' });
    const patch = this.#patchOf(space);
    this.#stopAndWrite(
      space,
      entry,
      ({ tracee }) => {
        // The slots said that all have switched; a register can't be read of a thread that runs.
        const isWrong = space.slots.ownState(tracee) !== (direction === 'patch' ? 1 : 0);
        if (isWrong && decidedFunction(tracee, patch) === undefined) throw notSwitched(tracee.tid);
      },
      ({ tracee }) => this.#tracer.resume(tracee),
    );
    this.#slots.takeBack(space, direction);
    this.#record(space, direction);
  }

  /** Puts every thread back under its own steam, whatever happened. */
  releaseAll(): void {
    this.#roster.unlessGone(this.#space, () => this.#log.save());
    this.#tracer.detachAll(1000);
  }

  /** Says for how long threads were held where it was longer than usual, and why. */
  tellHolds(): void {
    const created = () => 'a thread that created another was';
    this.#holds.add(
      'created',
      this.#tracer.longestCreationMs,
      created,
      () => 'livegraft was busy with others',
    );
    for (const text of this.#holds.texts()) this.#options.notice(text);
  }

  /** Where all switch together, none may go ahead. A barrier that another run has put there is taken away. */
  get #usesBarrier(): boolean {
    return switchesPerTask(this.#model);
  }

  /** The patch's barrier, unless something else has changed its entry (a later patch that replaces it). */
  #barrierOf(space: ProcessSpace): RegisteredBarrier | undefined {
    const { barrier } = this.#patchOf(space);
    if (barrier === undefined || entryState(space.memory, barrier) === 'foreign') return undefined;
    return barrier;
  }

  /** Threads at the barrier set the state that the direction leads to. One that does so just now holds neither version. */
  #aimBarrier(space: ProcessSpace): void {
    const { barrier } = this.#patchOf(space);
    if (barrier !== undefined)
      space.memory.write(barrier.valueAt, Uint8Array.of(this.#direction === 'patch' ? 1 : 0));
  }

  /** Tells of threads that have switched themselves. */
  #noteSelfSwitched(): void {
    if (this.barrier === undefined || performance.now() - this.#barrierSeenAtMs < BARRIER_LOOK_MS) return;
    this.#barrierSeenAtMs = performance.now();
    const wanted = this.#direction === 'patch' ? 1 : 0;
    this.#inEachSpace((space) => {
      for (const record of space.tasks.values()) {
        if (record.switchedTo === wanted || space.slots.stateOf(record.tracee) !== wanted) continue;
        record.switchedTo = wanted;
        record.tracee.syscallStopsWanted = 0;
        this.#log.forget(record);
        this.#roster.addEvent({ kind: 'taskSwitched', task: record.id });
      }
    });
  }

  /** In the process and its forked children. One that is gone in the middle of that is left out, and forgotten. */
  #inEachSpace(work: (space: ProcessSpace) => void): void {
    for (const space of [...this.spaces]) this.#roster.unlessGone(space, () => work(space));
  }

  /** For good, and before the first thread is switched so. The model that never checks is no exception to any rule. */
  #recordForced(space: ProcessSpace): void {
    if (this.#model !== 'immediate' && !this.#patchOf(space).forced)
      space.updatePatch(this.#patchId, { forced: true });
  }

  #record(space: ProcessSpace, direction: Direction): void {
    space.updateRegistry(afterTransition(space.registry, this.#patchId, this.#objects, direction));
  }

  /** See {@link writeWhileStopped}. */
  #stopAndWrite(
    space: ProcessSpace,
    state: EntryState,
    whenStopped: (record: TaskRecord, ran: boolean) => void,
    letGo: (record: TaskRecord) => void,
  ): void {
    writeWhileStopped({
      tracer: this.#tracer,
      space,
      plan: () => {
        try {
          return this.#planWrites(space, state);
        } catch (error) {
          // What lies there now may be another file's.
          if (!(error instanceof LivegraftError) || !this.#dropLeft(space)) throw error;
          return this.#planWrites(space, state);
        }
      },
      stays: ({ site }) => !this.#mayLeave(space).some((range) => isWithin(range, site.address)),
      expectAlive: () => this.#roster.expectAlive(),
      timeoutMs: this.#options.timeoutMs,
      holds: this.#holds,
      notice: this.#options.notice,
      whenStopped,
      letGo,
    });
  }

  #planWrites(space: ProcessSpace, state: EntryState): readonly EntryWrite[] {
    const entries = planEntryWrites(space.memory, this.#patchOf(space).functions, state);
    const barrier = this.#barrierOf(space);
    if (barrier === undefined) return entries;
    // A thread sets its state only while the entries choose by it.
    if (state === 'choosing' && this.#usesBarrier)
      return [...entries, ...planEntryWrites(space.memory, [barrier], 'choosing')];
    return [...planEntryWrites(space.memory, [barrier], 'below'), ...entries];
  }

  /** Where the objects lie that the program may unload. */
  #mayLeave(space: ProcessSpace): readonly MemoryRange[] {
    return partsOf(this.#patchOf(space)).flatMap(({ module }) => (module.mayLeave ? [module] : []));
  }

  /** Objects that have gone have taken their redirects along: they are pending again. True when there were some. */
  #dropLeft(space: ProcessSpace): boolean {
    const left = findLeft(space.registry, space.memory, readMappings(space.pid) ?? []);
    if (left.length === 0) return false;
    space.updateRegistry(withoutLeft(space.registry, left));
    space.inspector.refresh();
    if (!space.isFork) for (const one of left) this.#onLeft(one);
    return true;
  }

  #stopTogether(space: ProcessSpace): TaskRecord[] {
    for (;;) {
      const records = [...space.tasks.values()];
      const late = stopAll(this.#tracer, records, () => {});
      if (late.length > 0 || records.length === space.tasks.size) return records;
    }
  }

  #checkStack(record: TaskRecord): (() => StragglerReason) | undefined {
    return this.#decidedReason(record) ?? this.#judge(record, record.space.inspector.walk(record.tracee));
  }

  #judge({ space }: TaskRecord, walk: Walked): (() => StragglerReason) | undefined {
    return space.inspector.judge(walk, rangesLeaving(space.registry, this.#patchOf(space), this.#direction));
  }

  /** A thread between the reading of its state and the jump that follows has decided already. */
  #decidedReason(record: TaskRecord): (() => StragglerReason) | undefined {
    const name = decidedFunction(record.tracee, this.#patchOf(record.space));
    if (name === undefined) return undefined;
    const { inspector } = record.space;
    const { frames } = inspector.walk(record.tracee);
    return () => ({ kind: 'busy', function: name, frame: 0, frames: inspector.reportFrames(frames) });
  }

  #patchOf(space: ProcessSpace): RegisteredPatch {
    const patch = space.registry.patches.find((p) => p.id === this.#patchId);
    if (patch === undefined) throw new Error(`patch ${this.#patchId} is not in the registry`);
    return restrictTo(patch, this.#objects);
  }

  #transitionEntry() {
    return {
      patchId: this.#patchId,
      ...(this.#objects === undefined ? {} : { objects: this.#objects }),
      direction: this.#direction,
      model: this.#model,
      ...this.#log.entry(),
    };
  }

  #refuse(record: TaskRecord, reason: StragglerReason, timeslices: number | undefined): SwitchOutcome {
    record.noteRefusal(reason, timeslices, performance.now());
    // What it is in may have been unloaded, with something else in its place.
    if (reason.kind === 'busy' && this.#mayLeave(record.space).length > 0) this.#dropLeft(record.space);
    this.#log.note(record, reason);
    return { kind: 'refused', reason };
  }

  #goneOutcome(record: TaskRecord | undefined): SwitchOutcome {
    if (record !== undefined) this.#roster.forget(record);
    return { kind: 'gone' };
  }
}

/**
 * The state of a thread that has no slot when a transition begins or goes on: before the entries choose, all have
 * the version below (patch) or the new one (unpatch); while it finishes, slots are being given back by the switched.
 */
function stateWithoutSlot(before: RegisteredTransition | undefined, direction: Direction): 0 | 1 {
  const began = before?.direction ?? direction;
  const unswitched = began === 'patch' ? 0 : 1;
  return before?.phase === 'finishing' ? (unswitched === 0 ? 1 : 0) : unswitched;
}

function notSwitched(tid: number): LivegraftError {
  return new LivegraftError(
    'not-switched',
    `thread ${tid} was taken for one that has switched, and has not`,
    {
      remedy: 'repeat the command: it looks at every thread anew',
      details: { tid },
    },
  );
}

/** Reading the states of 1,000 threads takes 2 ms. */
const BARRIER_LOOK_MS = 5;

function unstoppable(record: TaskRecord): StragglerReason {
  return { kind: 'unstoppable', detail: `it ${stuckReason(record.space.pid, record)}` };
}
