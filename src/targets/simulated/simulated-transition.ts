import {
  type Direction,
  type PatchState,
  type StragglerReason,
  type SwitchOutcome,
  type TargetEvent,
  type TaskId,
  type TaskInfo,
  type TransitionTarget,
  taskId,
} from '../../engine/target.js';
import type { SimulatedMachine, SimulatedPatch, SimulatedTask } from './machine.js';

/** The tool dies here: what it knew is lost, what it wrote in the target stays. */
export class SimulatedDeath extends Error {}

export interface SimulatedTransitionOptions {
  readonly machine: SimulatedMachine;
  readonly patch: SimulatedPatch;
  /** Of every step that the tool takes: the probability that it dies there. */
  readonly deathChance: number;
  /** Of every walk: the probability that the stack can't be proven. */
  readonly unreliableChance: number;
  /** Of every stop: the probability that the task does not stop in time. */
  readonly unstoppableChance: number;
  /** How many things happen in the machine in a millisecond of waiting: 4 unless given. */
  readonly instantsPerMs?: number;
}

/**
 * One transition in a {@link SimulatedMachine}. The machine goes on between any two steps of the tool, as a real target
 * does; where a real one is stopped, it stands still.
 */
export class SimulatedTransition implements TransitionTarget {
  readonly name = 'simulated';
  readonly #options: SimulatedTransitionOptions;
  readonly #machine: SimulatedMachine;
  #direction: Direction = 'patch';
  #events: TargetEvent[] = [];
  readonly #watched = new Set<TaskId>();
  nowMs = 0;

  constructor(options: SimulatedTransitionOptions) {
    this.#options = options;
    this.#machine = options.machine;
    this.#machine.onEvent = (kind, task, parent) => {
      const id = idOf(task);
      if (kind === 'exited') this.#events.push({ kind: 'taskExited', task: id });
      else if (kind === 'created')
        this.#events.push({ kind: 'taskCreated', task: this.#infoOf(task), parent: parent && idOf(parent) });
      else if (this.#watched.delete(id)) this.#events.push({ kind: 'taskMoved', task: id });
    };
  }

  install(direction: Direction): void {
    this.#step();
    const { registry } = this.#machine;
    this.#direction = direction;
    const { id } = this.#options.patch;
    const before = registry.transition;
    if (before === undefined) {
      registry.entries = direction === 'patch' ? 'below' : 'direct';
      if (direction === 'patch') registry.patches = [...registry.patches, this.#options.patch];
    }
    if (before?.phase !== 'running') {
      // What every task runs until now, whichever way the transition was to go when it was begun.
      const runsNew = (before?.direction ?? direction) === 'unpatch';
      registry.transition ??= { patch: id, direction, phase: 'installing' };
      this.#mayDie();
      for (const task of this.#machine.alive) task.isPatched = runsNew;
      this.#mayDie();
    }
    registry.entries = 'choosing';
    registry.transition = { patch: id, direction, phase: 'running' };
    this.#step();
  }

  tasks(): readonly TaskInfo[] {
    this.#step();
    return this.#machine.alive.map((task) => this.#infoOf(task));
  }

  trySwitch(id: TaskId, to: 'unpatched' | 'patched', check: 'checked' | 'unchecked'): SwitchOutcome {
    this.#step();
    const task = this.#machine.find(Number(id));
    if (task === undefined) return { kind: 'gone' };
    const reason = check === 'checked' ? this.#refusal(task) : undefined;
    if (reason !== undefined) return { kind: 'refused', reason };
    task.isPatched = to === 'patched';
    this.#step();
    return { kind: 'switched' };
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
    if (refusals.size > 0) return { switched: false, refusals };
    for (const task of this.#machine.alive) task.isPatched = to === 'patched';
    this.#step();
    return { switched: true };
  }

  watchTask(task: TaskId): boolean {
    this.#step();
    this.#watched.add(task);
    return true;
  }

  waitForEvents(timeoutMs: number): readonly TargetEvent[] {
    this.nowMs += Math.max(timeoutMs, 0.05);
    this.#machine.run(Math.ceil(timeoutMs * (this.#options.instantsPerMs ?? 4)));
    this.#step();
    const events = this.#events;
    this.#events = [];
    return events;
  }

  reverse(direction: Direction): void {
    this.#step();
    this.#direction = direction;
    this.#machine.registry.transition = { patch: this.#options.patch.id, direction, phase: 'running' };
    this.#step();
  }

  finish(direction: Direction): void {
    this.#step();
    const { registry } = this.#machine;
    const { patch } = this.#options;
    registry.entries = direction === 'patch' ? 'direct' : 'below';
    this.#step();
    if (direction === 'patch') {
      for (const { name } of patch.functions) {
        this.#machine.expectUnused(this.#machine.versions.below(patch.id, name)?.patch, [name]);
      }
    } else {
      this.#machine.expectUnused(
        patch.id,
        patch.functions.map((fn) => fn.name),
      );
      registry.patches = registry.patches.filter((other) => other.id !== patch.id);
    }
    registry.transition = undefined;
  }

  #refusal(task: SimulatedTask): StragglerReason | undefined {
    const { random } = this.#machine;
    if (random.chance(this.#options.unstoppableChance))
      return { kind: 'unstoppable', detail: 'it did not stop' };
    if (random.chance(this.#options.unreliableChance))
      return { kind: 'unreliable', cause: 'simulated', detail: 'it could not be proven', frames: [] };
    const { patch } = this.#options;
    const leaving = (name: string) =>
      this.#direction === 'patch' ? this.#machine.versions.below(patch.id, name)?.patch : patch.id;
    const at = task.stack.findLastIndex(
      (frame) =>
        patch.functions.some((fn) => fn.name === frame.name) && frame.version === leaving(frame.name),
    );
    const frame = task.stack[at];
    return frame && { kind: 'busy', function: frame.name, frame: task.stack.length - 1 - at, frames: [] };
  }

  #infoOf(task: SimulatedTask): TaskInfo {
    const state: PatchState = task.isPatched ? 'patched' : 'unpatched';
    return { id: idOf(task), name: `task ${task.id}`, state };
  }

  /** Between any two things that the tool does, the program goes on, and the tool may end. */
  #step(): void {
    this.#machine.run(this.#machine.random.below(6));
    this.#mayDie();
  }

  #mayDie(): void {
    if (this.#machine.random.chance(this.#options.deathChance)) throw new SimulatedDeath();
  }
}

function idOf(task: SimulatedTask): TaskId {
  return taskId(String(task.id));
}
