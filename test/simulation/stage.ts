import { LivegraftError } from '../../src/base/errors.js';
import type { CallbackKind } from '../../src/engine/callbacks.js';
import type { TransitionResult } from '../../src/engine/events.js';
import { findStateConflict } from '../../src/engine/states.js';
import type { ConsistencyModel, Direction } from '../../src/engine/target.js';
import { runTransition, TransitionControl } from '../../src/engine/transition.js';
import { Choices } from '../../src/targets/simulated/choices.js';
import { SimulatedMachine, type SimulatedPatch } from '../../src/targets/simulated/machine.js';
import { LIBRARY, OBJECTS } from '../../src/targets/simulated/objects.js';
import { SimulatedObjects } from '../../src/targets/simulated/simulated-objects.js';
import { SimulatedTransition } from '../../src/targets/simulated/simulated-transition.js';
import { frameOf, type SimulatedTask, stateOf } from '../../src/targets/simulated/task.js';

/** A simulated program on which a test plays one scenario: its tasks do as chance says, or sit where the test puts them. */
export class Stage {
  readonly machine: SimulatedMachine;
  readonly #model: ConsistencyModel;
  readonly #unreliableChance: number;

  constructor(
    options: {
      readonly tasks?: number;
      readonly seed?: number;
      readonly model?: ConsistencyModel;
      readonly calls?: readonly string[];
      /** Of every walk. 0 where a test asks for the reason of the last refusal. */
      readonly unreliableChance?: number;
    } = {},
  ) {
    const { tasks = 8, seed = 1, model = 'hybrid', calls, unreliableChance = 0.1 } = options;
    this.#model = model;
    this.#unreliableChance = unreliableChance;
    this.machine = new SimulatedMachine({
      choices: Choices.ofSeed(seed),
      tasks,
      mostTasks: 2 * tasks,
      longestSleep: 8,
      isOneProcess: true,
      ...(calls === undefined ? {} : { calls }),
    });
    this.machine.run(20 * tasks);
  }

  /** Goes on until the transition is complete, or for `timeoutMs` of the program's time. */
  async enable(patch: SimulatedPatch, options?: TurnOptions): Promise<TransitionResult> {
    const { patches, change } = this.machine;
    if (change !== undefined && change.patch !== patch.id)
      throw new LivegraftError('transition-in-progress', `that of ${change.patch}`);
    const enabled = patches.filter((other) => other !== patch);
    const named = enabled.map(({ id, states = [] }) => ({ name: id, states }));
    const conflict = findStateConflict({ replaces: patch.replaces, states: patch.states ?? [] }, named);
    if (conflict !== undefined)
      throw new LivegraftError('state-incompatible', `with ${conflict.enabled} in state ${conflict.id}`);
    if (change === undefined) new SimulatedObjects(this.machine, true, () => {}).prepare(patch);
    return await this.#go(patch, 'patch', options);
  }

  async disable(patch: SimulatedPatch, options?: TurnOptions): Promise<TransitionResult> {
    return await this.#go(patch, 'unpatch', options);
  }

  /** The library is loaded while a tool watches, which runs callbacks there and then, as in a kernel. */
  load(): void {
    this.#watched((task) => this.machine.load(task));
  }

  /** The same for what is unloaded. */
  unload(): void {
    this.#watched((task) => this.machine.close(task));
  }

  #watched(work: (task: SimulatedTask) => void): void {
    const { machine } = this;
    machine.isAnswered = true;
    machine.isToldOfLeaving = true;
    // Whoever unloads it sees to it that nobody is inside.
    for (const task of machine.alive) if (task.sleepsFor !== Number.POSITIVE_INFINITY) task.stack.length = 0;
    work(machine.alive.at(-1) as SimulatedTask);
    new SimulatedObjects(machine, true, () => machine.run(machine.choices.below(4))).attend();
    machine.detach();
    machine.run(20 * machine.alive.length);
  }

  /** Which versions of a function the program's tasks would run, should they call it now; undefined for the original. */
  versionsOf(name: string): ReadonlySet<string | undefined> {
    const entry = this.machine.entries.get(name);
    if (entry === undefined) throw new Error(`no function ${name}`);
    return new Set(
      this.machine.alive.map((task) => {
        if (entry.kind === 'fixed') return entry.version;
        return stateOf(task) ? entry.patched : entry.unpatched;
      }),
    );
  }

  /** The newest version of the function, and a task that stays in it. */
  park(name: string): SimulatedTask {
    const [task] = this.machine.alive;
    if (task === undefined) throw new Error('the program has ended');
    task.stack.length = 0;
    task.stack.push(frameOf(name, 'body', this.machine.versions.newest(name)?.patch));
    task.sleepsFor = Number.POSITIVE_INFINITY;
    task.isUninterruptible = false;
    return task;
  }

  letOut(task: SimulatedTask): void {
    task.sleepsFor = 1;
  }

  /** As the kernel's sysfs attributes of a patch. */
  attributesOf(patch: SimulatedPatch) {
    const { patches, change } = this.machine;
    const at = patches.indexOf(patch);
    const isChanging = change?.patch === patch.id;
    return {
      enabled: Number(at >= 0 && !(isChanging && change.direction === 'unpatch')),
      transition: Number(isChanging),
      patched: Number(at >= 0),
      stackOrder: at + 1,
    };
  }

  async #go(
    patch: SimulatedPatch,
    direction: Direction,
    options: TurnOptions = {},
  ): Promise<TransitionResult> {
    const { machine } = this;
    const target = new SimulatedTransition({
      machine,
      patch,
      attends: 'withCallbacks',
      hasBarrier: this.#model === 'lazy',
      deathChance: 0,
      unreliableChance: this.#unreliableChance,
      instantsPerMs: machine.alive.length,
    });
    const control = new TransitionControl();
    try {
      return await runTransition(target, {
        direction,
        model: this.#model,
        timeoutMs: options.timeoutMs ?? 10_000,
        clock: { nowMs: () => target.nowMs },
        control,
        onEvent: (event) => {
          if (event.kind === 'taskWaiting') options.onWaiting?.(control, event.task);
        },
      });
    } catch (error) {
      // Of a patch that was refused, what its callbacks did is taken back.
      if (machine.change === undefined) new SimulatedObjects(machine, false, () => {}).giveUp(patch, OBJECTS);
      throw error;
    } finally {
      machine.detach();
      machine.run(20 * machine.alive.length);
    }
  }
}

export interface TurnOptions {
  readonly timeoutMs?: number;
  /** Each time that a task was refused. */
  readonly onWaiting?: (control: TransitionControl, task: string) => void;
}

/** The patch with all four callbacks, which write their names down; the pre-patch one answers `answer`, for the object `only` alone where that is given. */
export function withCallbacks(
  patch: SimulatedPatch,
  log: string[],
  answer = 0,
  does: Partial<Record<CallbackKind, () => void>> = {},
  only?: string,
): SimulatedPatch {
  const callback = (kind: CallbackKind) => (object: string) => {
    log.push(`${patch.id} ${kind}${object === LIBRARY ? ' (library)' : ''}`);
    does[kind]?.();
    return kind === 'prePatch' && (only === undefined || only === object) ? answer : 0;
  };
  return {
    ...patch,
    callbacks: {
      prePatch: callback('prePatch'),
      postPatch: callback('postPatch'),
      preUnpatch: callback('preUnpatch'),
      postUnpatch: callback('postUnpatch'),
    },
  };
}

export const patchOf = (id: string, names: readonly string[], replaces = false): SimulatedPatch => ({
  id,
  replaces,
  functions: names.map((name) => ({ name, patch: id })),
});
