import { VersionStack } from '../../engine/version-stack.js';

/** A simulated program that can be patched: tasks call functions, sleep, are created and end. Seeded, deterministic. */

/** Small, fast and the same everywhere: mulberry32. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** In [0, 1). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  chance(probability: number): boolean {
    return this.next() < probability;
  }
}

export interface SimulatedPatch {
  readonly id: string;
  readonly functions: readonly SimulatedFunction[];
}

export interface SimulatedFunction {
  readonly name: string;
  /** The patch that brought this version. */
  readonly patch: string;
}

/** A function of the program on a task's stack, in the version it was entered in. */
export interface SimulatedFrame {
  readonly name: string;
  /** The patch of the version, undefined for the original. */
  readonly version: string | undefined;
}

export interface SimulatedTask {
  readonly id: number;
  /** Outermost first. */
  stack: readonly SimulatedFrame[];
  /** What its redirects read. */
  isPatched: boolean;
  /** Instants for which it sleeps where it is. */
  sleepsFor: number;
}

/** What is written in the target: a later tool knows nothing else. */
export interface SimulatedRegistry {
  patches: readonly SimulatedPatch[];
  transition:
    | {
        readonly patch: string;
        readonly direction: 'patch' | 'unpatch';
        /** Tasks have no states that count before it runs. */
        readonly phase: 'installing' | 'running';
      }
    | undefined;
  /** How the entries of the patch in transition are: redirects to nothing, by task, or to the new version. */
  entries: 'below' | 'choosing' | 'direct';
}

export interface MachineOptions {
  readonly seed: number;
  readonly tasks: number;
  readonly functions: readonly string[];
  /** How long a task may sleep inside a function, in instants. */
  readonly longestSleep: number;
  /** No more are created than there may be at a time: 12 unless given. */
  readonly mostTasks?: number;
}

const DEEPEST = 6;
const MOST_TASKS = 12;

/** Thrown when a task met what live patching must rule out. */
export class ConsistencyViolation extends Error {}

export class SimulatedMachine {
  readonly random: Random;
  /** Those that live, in no order. */
  readonly #alive: SimulatedTask[] = [];
  readonly #places = new Map<number, number>();
  readonly registry: SimulatedRegistry = { patches: [], transition: undefined, entries: 'below' };
  readonly #options: MachineOptions;
  #nextId = 1;
  /** Called when something happens that an observer may want to know at once. */
  onEvent: (
    kind: 'created' | 'exited' | 'moved',
    task: SimulatedTask,
    parent: SimulatedTask | undefined,
  ) => void = () => {};

  constructor(options: MachineOptions) {
    this.random = new Random(options.seed);
    this.#options = options;
    for (let i = 0; i < options.tasks; i++) this.#create([], false);
  }

  get alive(): readonly SimulatedTask[] {
    return this.#alive;
  }

  find(id: number): SimulatedTask | undefined {
    const place = this.#places.get(id);
    return place === undefined ? undefined : this.#alive[place];
  }

  get versions(): VersionStack<SimulatedFunction> {
    return new VersionStack(this.registry.patches, (version) => version.name);
  }

  patchInTransition(): SimulatedPatch | undefined {
    return this.registry.patches.find((patch) => patch.id === this.registry.transition?.patch);
  }

  /** Lets `instants` pass, in each of which one task does one thing. */
  run(instants: number): void {
    for (let i = 0; i < instants; i++) {
      const task = this.#alive[this.random.below(this.#alive.length)];
      if (task !== undefined) this.#step(task);
    }
  }

  #step(task: SimulatedTask): void {
    if (task.sleepsFor > 0) {
      task.sleepsFor -= 1;
      if (task.sleepsFor === 0) this.onEvent('moved', task, undefined);
      return;
    }
    const what = this.random.next();
    if (what < 0.45 && task.stack.length < DEEPEST) this.#call(task);
    else if (what < 0.85) task.stack = task.stack.slice(0, -1);
    else if (what < 0.95) task.sleepsFor = this.random.below(this.#options.longestSleep) + 1;
    else if (what < 0.98) this.#cloneOrFork(task);
    else if (this.#alive.length > 1) this.#exit(task);
  }

  #call(task: SimulatedTask): void {
    const name = this.#options.functions[this.random.below(this.#options.functions.length)] as string;
    const frame = { name, version: this.#versionFor(task, name) };
    task.stack = [...task.stack, frame];
    this.#expectOneSide(task);
  }

  /** What the redirects at the entry of a function lead a task to. */
  #versionFor(task: SimulatedTask, name: string): string | undefined {
    const patch = this.patchInTransition();
    const isChanging = patch?.functions.some((fn) => fn.name === name) === true;
    if (patch === undefined || !isChanging) return this.versions.newest(name)?.patch;
    const takesNew =
      this.registry.entries === 'direct' || (this.registry.entries === 'choosing' && task.isPatched);
    return takesNew ? patch.id : this.versions.below(patch.id, name)?.patch;
  }

  /** Rule 1 of DESIGN.md section 2: in one task, functions that change together are never met in two versions. */
  #expectOneSide(task: SimulatedTask): void {
    for (const patch of this.registry.patches) {
      const changed = task.stack.filter((frame) => patch.functions.some((fn) => fn.name === frame.name));
      const later = this.registry.patches.slice(this.registry.patches.indexOf(patch));
      const isNew = changed.map((frame) => later.some((other) => other.id === frame.version));
      if (isNew.includes(true) && isNew.includes(false)) {
        throw new ConsistencyViolation(
          `task ${task.id} mixes versions around patch ${patch.id}: ${describe(task)}`,
        );
      }
    }
  }

  /** A version is gone: nobody may be inside, or return into it. */
  expectUnused(version: string | undefined, names: readonly string[]): void {
    for (const task of this.#alive) {
      if (task.stack.some((frame) => frame.version === version && names.includes(frame.name))) {
        throw new ConsistencyViolation(
          `task ${task.id} returns into ${version ?? 'the original'}: ${describe(task)}`,
        );
      }
    }
  }

  /** A thread starts with an empty stack, a forked process with a copy of its parent's. Both inherit the state. */
  #cloneOrFork(parent: SimulatedTask): void {
    if (this.#alive.length >= (this.#options.mostTasks ?? MOST_TASKS)) return;
    const child = this.#create(this.random.chance(0.5) ? parent.stack : [], parent.isPatched);
    this.onEvent('created', child, parent);
  }

  #create(stack: readonly SimulatedFrame[], isPatched: boolean): SimulatedTask {
    const task = { id: this.#nextId++, stack, isPatched, sleepsFor: 0 };
    this.#places.set(task.id, this.#alive.length);
    this.#alive.push(task);
    return task;
  }

  #exit(task: SimulatedTask): void {
    const place = this.#places.get(task.id) as number;
    const last = this.#alive.pop() as SimulatedTask;
    if (last !== task) {
      this.#alive[place] = last;
      this.#places.set(last.id, place);
    }
    this.#places.delete(task.id);
    this.onEvent('exited', task, undefined);
  }
}

function describe(task: SimulatedTask): string {
  return task.stack.map((frame) => `${frame.name}@${frame.version ?? 'original'}`).join(' > ');
}
