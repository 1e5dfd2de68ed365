import { LivegraftError } from '../../base/errors.js';
import type { CallbackObject, CallbackStage } from '../../engine/callbacks.js';
import {
  type Direction,
  type StragglerReason,
  type SwitchOutcome,
  type TargetEvent,
  type TaskId,
  type TaskInfo,
  type TransitionTarget,
  taskId,
} from '../../engine/target.js';
import {
  type MachineEvent,
  OPAQUE,
  type SimulatedEntry,
  type SimulatedMachine,
  type SimulatedPatch,
} from './machine.js';
import { LIBRARY, OBJECTS, objectOf } from './objects.js';
import { ConsistencyViolation } from './oracle.js';
import { SimulatedCallbacks } from './simulated-callbacks.js';
import { changesOf, type Sides, SimulatedObjects } from './simulated-objects.js';
import { type SimulatedFrame, type SimulatedSlot, type SimulatedTask, stateOf } from './task.js';

/** The tool dies here: what it knew is lost, what it wrote in the target stays. */
export class SimulatedDeath extends Error {}

/** One for all: making an error costs as much as a whole step. */
const DEATH = new SimulatedDeath('the tool dies');

export interface SimulatedTransitionOptions {
  readonly machine: SimulatedMachine;
  readonly patch: SimulatedPatch;
  /** Those of the patch that take part; all without. */
  readonly objects?: readonly string[] | undefined;
  /** Attends to the library while the transition waits. */
  readonly attends?: 'withCallbacks' | 'withoutCallbacks' | undefined;
  /** Tasks may switch themselves where they are in no function. */
  readonly hasBarrier: boolean;
  /** Of every step that the tool takes: the probability that it dies there. */
  readonly deathChance: number;
  /** Of every walk: the probability that the stack can't be proven. */
  readonly unreliableChance: number;
  /** How many things happen in the machine in a millisecond of waiting. */
  readonly instantsPerMs: number;
}

type Walk =
  | { readonly reliable: true; readonly frames: readonly SimulatedFrame[] }
  | { readonly reliable: false; readonly detail: string };

/**
 * One transition in a {@link SimulatedMachine}. The machine goes on between any two steps of the tool, as a real target
 * does; where a real one is stopped, it stands still. The order of steps is the one of the process target, and so is
 * what is looked at.
 */
export class SimulatedTransition implements TransitionTarget {
  readonly name = 'simulated';
  readonly barrier: string | undefined;
  readonly #options: SimulatedTransitionOptions;
  readonly #machine: SimulatedMachine;
  #direction: Direction = 'patch';
  #changed: ReadonlyMap<string, Sides> = new Map();
  /** What was there when that was worked out. */
  #changedFor = '';
  readonly objects: SimulatedObjects;
  #events: TargetEvent[] = [];
  readonly #watched = new Set<number>();
  /** Held, and said to have moved: the engine has to try them at once. */
  readonly #delivered = new Set<SimulatedTask>();
  nowMs = 0;

  constructor(options: SimulatedTransitionOptions) {
    this.#options = options;
    this.#machine = options.machine;
    this.barrier = options.hasBarrier ? 'turn' : undefined;
    this.objects = new SimulatedObjects(this.#machine, options.attends === 'withCallbacks', () =>
      this.#step(),
    );
  }

  callbackObjects(): readonly CallbackObject[] {
    const { patch } = this.#options;
    if (patch.callbacks === undefined) return [];
    return OBJECTS.filter((object) => this.#takesPart(object)).map(
      (object) =>
        new SimulatedCallbacks(
          this.#machine,
          patch,
          object,
          () => this.#step(),
          (stage) => this.#prepareFor(stage),
        ),
    );
  }

  /** Where callbacks count on it that all have switched, so must who is created from now on, also when nobody watches any more. */
  #prepareFor(stage: CallbackStage): void {
    if (stage === 'postPatched' || stage === 'none') this.#machine.setTable(stage === 'postPatched');
  }

  /** An object that the transition is for, that the patch changes, and that is there. */
  #takesPart(object: string): boolean {
    const { patch, objects } = this.#options;
    if (objects?.includes(object) === false) return false;
    if (object === LIBRARY) return this.#machine.partOf(patch.id) !== undefined;
    return patch.replaces || patch.functions.some(({ name }) => objectOf(name) === object);
  }

  install(direction: Direction): void {
    this.#step();
    const machine = this.#machine;
    const { patch } = this.#options;
    this.#direction = direction;
    const { objects } = this.#options;
    machine.isWatched = true;
    machine.isAnswered = this.#options.attends !== undefined;
    machine.isToldOfLeaving = this.#options.attends === 'withCallbacks';
    machine.onEvent = (kind, task, parent) => this.#note(kind, task, parent);
    this.#giveSlots();
    const before = machine.change;
    const of = { patch: patch.id, ...(objects === undefined ? {} : { objects }) };
    if (before?.phase !== 'running') {
      // What every task runs until now, whichever way the transition was to go when it was begun.
      const began = before?.direction ?? direction;
      const runsNew = (began === 'unpatch') !== (before?.phase === 'finishing');
      if (before === undefined) machine.setTable(runsNew);
      this.#mayDie();
      if (before === undefined && !machine.patches.includes(patch))
        machine.patches = [...machine.patches, patch];
      machine.change ??= { ...of, direction, phase: 'installing' };
      this.#mayDie();
      for (const task of machine.alive) setState(task, runsNew);
      machine.areStatesGiven = true;
      this.#mayDie();
      machine.oracle.noteBegun(patch, runsNew ? 'unpatch' : 'patch');
    } else machine.change = { ...before, direction };
    this.#updateChanged();
    this.#log(`install: ${direction} ${patch.id}`);
    this.#step();
    for (const [name, sides] of this.#changed) {
      this.#write(name, { kind: 'choosing', patched: sides.new, unpatched: sides.old });
      this.#step();
    }
    machine.change = { ...of, direction, phase: 'running' };
    // Only now does every function follow the state that the barrier gives.
    this.#armBarrier();
    this.#step();
  }

  /** Each task gets a slot of its own, with what it has. They are stopped one by one, while the others run on. */
  #giveSlots(): void {
    const { alive } = this.#machine;
    const taken = new Set<SimulatedSlot>();
    for (const task of [...alive]) {
      if (task.slot === this.#machine.freeEntry) task.slot = { ...task.slot };
      if (taken.has(task.slot)) task.slot = { isPatched: stateOf(task) };
      if (task.slot.isState !== true) taken.add(task.slot);
      this.#step();
    }
    // One that was stopped late has passed the barrier in the slot of one that was stopped before.
    for (const task of alive) task.slot.isPatched = stateOf(task);
  }

  tasks(): readonly TaskInfo[] {
    this.#step();
    return this.#machine.alive.map(infoOf);
  }

  trySwitch(id: TaskId, to: 'unpatched' | 'patched', check: 'checked' | 'unchecked'): SwitchOutcome {
    this.#step();
    const task = this.#machine.find(Number(id));
    if (task === undefined) return { kind: 'gone' };
    const reason = check === 'checked' ? this.#refusal(task) : undefined;
    if (reason === undefined) this.#switch(task, to);
    this.#release(task);
    this.#step();
    return reason === undefined ? { kind: 'switched' } : { kind: 'refused', reason };
  }

  trySwitchAll(
    to: 'unpatched' | 'patched',
    check: 'checked' | 'unchecked',
  ): { switched: true } | { switched: false; refusals: ReadonlyMap<TaskId, StragglerReason> } {
    this.#step();
    const refusals = new Map<TaskId, StragglerReason>();
    for (const task of this.#machine.alive) {
      const reason = check === 'checked' ? this.#refusal(task) : undefined;
      if (reason !== undefined) refusals.set(idOf(task), reason);
    }
    if (refusals.size === 0) for (const task of this.#machine.alive) this.#switch(task, to);
    this.#step();
    return refusals.size === 0 ? { switched: true } : { switched: false, refusals };
  }

  watchTask(task: TaskId): boolean {
    this.#step();
    this.#watched.add(Number(task));
    return true;
  }

  waitForEvents(timeoutMs: number): readonly TargetEvent[] {
    for (const task of this.#delivered)
      throw new ConsistencyViolation(`task ${task.id} is held, and nobody lets it go`);
    this.nowMs += Math.max(timeoutMs, 0.05);
    this.#machine.run(Math.ceil(timeoutMs * this.#options.instantsPerMs));
    this.#step();
    // Tasks are checked at their own steps; all of them only here, or each attempt would cost a pass over all.
    this.#machine.oracle.expectAll();
    if (this.#options.attends !== undefined) this.objects.attend();
    const events = this.#events;
    this.#events = [];
    for (const event of events) {
      if (event.kind !== 'taskMoved') continue;
      const task = this.#machine.find(Number(event.task));
      if (task?.isHeld === true) this.#delivered.add(task);
    }
    return events;
  }

  reverse(direction: Direction): void {
    this.#step();
    this.#direction = direction;
    const { patch, objects } = this.#options;
    const of = { patch: patch.id, ...(objects === undefined ? {} : { objects }) };
    this.#machine.change = { ...of, direction, phase: 'running' };
    this.#log(`reverse: ${direction}`);
    this.#step();
    this.#armBarrier();
    this.#step();
  }

  finish(direction: Direction): void {
    this.#step();
    const machine = this.#machine;
    const { patch, objects } = this.#options;
    machine.barrierGives = undefined;
    // All have switched: who is created from now on, also when nobody watches any more, begins with what they have.
    machine.setTable(direction === 'patch');
    this.#step();
    if (machine.change !== undefined) machine.change = { ...machine.change, direction, phase: 'finishing' };
    this.#step();
    this.#updateChanged();
    for (const [name, sides] of this.#changed) {
      this.#write(name, { kind: 'fixed', version: direction === 'patch' ? sides.new : sides.old });
      this.#step();
    }
    // Nothing asks for states any more: they are given back.
    for (const task of machine.alive) setState(task, false);
    machine.areStatesGiven = false;
    this.#mayDie();
    machine.oracle.noteFinished(direction);
    this.#log(`finished: ${direction}`);
    const part = machine.partOf(patch.id);
    if (direction === 'unpatch') {
      if (this.#takesPart(LIBRARY) || objects === undefined) machine.parts.delete(patch.id);
      if (objects === undefined) machine.patches = machine.patches.filter((other) => other.id !== patch.id);
    } else {
      if (part !== undefined) part.state = 'installed';
      if (patch.replaces && objects === undefined) {
        machine.patches = [patch];
        for (const id of [...machine.parts.keys()]) if (id !== patch.id) machine.parts.delete(id);
      }
    }
    machine.dropStages();
    machine.change = undefined;
    machine.oracle.expectAll();
  }

  /** What has gone meanwhile has taken its entry along. */
  #write(name: string, entry: SimulatedEntry): void {
    if (this.#takesPart(objectOf(name))) this.#machine.entries.set(name, entry);
  }

  /** What this transition changes, by function, in what is there now. */
  #updateChanged(): void {
    const { loads, library } = this.#machine;
    const { patch } = this.#options;
    const now = `${loads} ${library} ${this.#machine.partOf(patch.id)?.gate}`;
    if (this.#changedFor === now) return;
    this.#changedFor = now;
    this.#changed = changesOf(this.#machine, patch, (object) => this.#takesPart(object));
  }

  #armBarrier(): void {
    if (!this.#options.hasBarrier) return;
    this.#machine.barrierGives = this.#direction === 'patch' ? 'patched' : 'unpatched';
  }

  #refusal(task: SimulatedTask): StragglerReason | undefined {
    if (task.vforkChild !== undefined) return { kind: 'unstoppable', detail: 'it waits for a vforked child' };
    if (task.sleepsFor > 0 && task.isUninterruptible)
      return { kind: 'unstoppable', detail: 'it sleeps uninterruptibly' };
    this.#updateChanged();
    const walk = this.#walk(task);
    if (!walk.reliable) return { kind: 'unreliable', cause: 'simulated', detail: walk.detail, frames: [] };
    const at = walk.frames.findIndex(({ name, version }) => {
      const sides = this.#changed.get(name);
      if (sides === undefined || sides.old === sides.new) return false;
      return version === (this.#direction === 'patch' ? sides.old : sides.new);
    });
    const frame = walk.frames[at];
    return frame && { kind: 'busy', function: symbolOf(frame), frame: at, frames: [] };
  }

  /** Innermost first. */
  #walk(task: SimulatedTask): Walk {
    if (this.#machine.choices.chance(this.#options.unreliableChance))
      return { reliable: false, detail: 'it could not be proven' };
    const frames: SimulatedFrame[] = [];
    for (let at = task.stack.length - 1; at >= 0; at--) {
      const frame = task.stack[at] as SimulatedFrame;
      if (frame.name === OPAQUE) return { reliable: false, detail: `no row for ${OPAQUE}` };
      // Behind an exception frame, the interrupted function stands at any instruction: the walk goes on all the same.
      if (frame.part !== 'exception') frames.push(frame);
    }
    return { reliable: true, frames };
  }

  #switch(task: SimulatedTask, to: 'unpatched' | 'patched'): void {
    const isPatched = to === 'patched';
    if (stateOf(task) === isPatched) return;
    setState(task, isPatched);
    this.#log(`switches task ${task.id} to ${to}`);
    for (const sharer of this.#machine.sharersOf(task)) this.#machine.oracle.noteSwitched(sharer, isPatched);
  }

  #release(task: SimulatedTask): void {
    task.isHeld = false;
    this.#delivered.delete(task);
  }

  #note(kind: MachineEvent, task: SimulatedTask, parent: SimulatedTask | undefined): void {
    const id = idOf(task);
    switch (kind) {
      case 'created':
        this.#events.push({ kind: 'taskCreated', task: infoOf(task), parent: parent && idOf(parent) });
        return;
      case 'exited':
        this.#delivered.delete(task);
        this.#events.push({ kind: 'taskExited', task: id });
        if (this.#machine.isGone) this.#events.push({ kind: 'targetGone', error: goneError() });
        return;
      case 'switched':
        this.#events.push({ kind: 'taskSwitched', task: id });
        return;
      case 'moved':
        if (!this.#watched.delete(task.id)) return;
        task.isHeld = true;
        this.#events.push({ kind: 'taskMoved', task: id });
    }
  }

  /** Between any two things that the tool does, the program goes on, and the tool may end. */
  #step(): void {
    const machine = this.#machine;
    machine.run(machine.choices.below(4));
    if (machine.isGone) throw goneError();
    this.#mayDie();
  }

  #mayDie(): void {
    const { deathChance } = this.#options;
    if (deathChance > 0 && this.#machine.choices.chance(deathChance)) {
      this.#log('dies');
      throw DEATH;
    }
  }

  #log(what: string): void {
    this.#machine.log(() => `livegraft: ${what}`);
  }
}

/** Of a task that has a slot of its own. */
function setState(task: SimulatedTask, isPatched: boolean): void {
  task.isPatched = isPatched;
  task.slot.isPatched = isPatched;
}

function goneError(): LivegraftError {
  return new LivegraftError('target-gone', 'the simulated program has ended');
}

function symbolOf(frame: SimulatedFrame): string {
  return frame.part === 'body' ? frame.name : `${frame.name}.${frame.part}`;
}

/** What can be known of a task that runs. */
function infoOf(task: SimulatedTask): TaskInfo {
  const state = task.slot.isPatched ? 'patched' : 'unpatched';
  return { id: idOf(task), name: `task ${task.id}`, state };
}

function idOf(task: SimulatedTask): TaskId {
  return taskId(String(task.id));
}
