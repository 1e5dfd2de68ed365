import type { CallbackKind } from '../../engine/callbacks.js';
import { VersionStack } from '../../engine/version-stack.js';
import type { SimulatedFunction, SimulatedMachine, SimulatedPatch } from './machine.js';
import { LIBRARY, OBJECTS, objectOf } from './objects.js';
import { type SimulatedFrame, type SimulatedTask, stateOf } from './task.js';

/** Something that live patching must rule out has happened. */
export class ConsistencyViolation extends Error {}

/** Of a patch that has all four. */
const MAY_FOLLOW: Readonly<Record<CallbackKind, readonly (CallbackKind | undefined)[]>> = {
  prePatch: [undefined],
  postPatch: ['prePatch', 'preUnpatch'],
  preUnpatch: ['postPatch'],
  postUnpatch: ['prePatch', 'preUnpatch'],
};

interface Sides {
  readonly old: string | undefined;
  readonly new: string | undefined;
}

/**
 * Watches a {@link SimulatedMachine} from above. It reads stacks as they are, not as a walk finds them, and derives what
 * a transition changes from the list of patches on its own. Each promise is checked at the step that could break it.
 */
export class Oracle {
  readonly #machine: SimulatedMachine;
  /** What the transition changes, by function. */
  #sides: ReadonlyMap<string, Sides> | undefined;
  /** Nobody looks at stacks (model immediate, force): mixes are then the operator's. */
  isLenient = false;
  /** The last callback that ran of each patch for each object, until either is gone. */
  readonly #ran = new Map<string, CallbackKind | undefined>();
  /** Which versions of the library all tasks meet, by patch: one, from one transition of it to the next. */
  readonly #library = new Map<string, 'old' | 'new'>();

  constructor(machine: SimulatedMachine) {
    this.#machine = machine;
  }

  /** The states of tasks begin to count: all must be the one that leads to the versions they have. */
  noteBegun(patch: SimulatedPatch, direction: 'patch' | 'unpatch'): void {
    this.#findSides(patch);
    for (const task of this.#machine.alive) {
      task.ruled = direction === 'unpatch';
      task.side = 'none';
      if (!this.isLenient) this.#expectLeft(task, task.ruled ? 'old' : 'new', 'begins in');
      for (const frame of task.stack) this.noteCall(task, frame);
    }
  }

  /** The library has come or gone, all its code with it. */
  noteLibrary(): void {
    this.#library.clear();
    const { change, patches } = this.#machine;
    const patch = patches.find(({ id }) => id === change?.patch);
    if (this.#sides !== undefined && patch !== undefined) this.#findSides(patch);
  }

  /** From now on tasks that call the library get what they have of the rest of the patch. Nobody has called it yet. */
  noteArrived(patch: SimulatedPatch): void {
    const { change, patches } = this.#machine;
    const isIn = change?.patch === patch.id && change.objects?.includes(LIBRARY) !== false;
    if (isIn && change.phase === 'running') {
      this.#findSides(patch);
      return;
    }
    const isFirst = ({ functions, id }: SimulatedPatch) =>
      functions.some(({ name }) => objectOf(name) === LIBRARY) && !this.#isThere(id, 'x');
    const older = patches.slice(0, patches.indexOf(patch)).find(isFirst);
    if (older !== undefined && !patch.replaces) fail(`${patch.id} comes to the library before ${older.id}`);
    const haveNew = !isIn || (change.phase === 'finishing') === (change.direction === 'patch');
    if (this.#library.has(patch.id)) fail(`${patch.id} comes to a library that has run`);
    this.#library.set(patch.id, haveNew ? 'new' : 'old');
  }

  /** Of an object that has gone no callback runs any more. */
  noteLeft(patch: SimulatedPatch): void {
    this.#ran.delete(keyOf(patch.id, LIBRARY));
  }

  /** Of a redirect that goes by the state of the task. */
  noteStateRead(task: SimulatedTask): void {
    if (!this.#machine.areStatesGiven) fail(`a state that nobody has given is read: ${describe(task)}`);
  }

  #findSides(patch: SimulatedPatch): void {
    const { change, patches } = this.#machine;
    const takesPart = (name: string) =>
      change?.objects?.includes(objectOf(name)) !== false && this.#isThere(patch.id, name);
    this.#sides = sidesOf(patches, patch, takesPart, (id, name) => this.#isThere(id, name));
    if (this.#sides.has('x') || this.#sides.has('y')) this.#library.clear();
  }

  /** Whether the patch has a version in the object of the function. */
  #isThere(patch: string, name: string): boolean {
    return objectOf(name) !== LIBRARY || this.#machine.partOf(patch) !== undefined;
  }

  /**
   * The rules of a call: in one task, functions that change together are never met in two versions between two switches;
   * and where nothing is in transition, a library that has come is met in one version by all.
   */
  noteCall(task: SimulatedTask, frame: SimulatedFrame): void {
    if (!this.isLenient && !this.#isLoaded(frame))
      fail(`task ${task.id} calls ${frame.name}@${frame.version}, which is gone`);
    if (frame.part !== 'exception' && objectOf(frame.name) === LIBRARY) this.#noteLibraryCall(task, frame);
    const sides = frame.part === 'exception' ? undefined : this.#sides?.get(frame.name);
    if (sides === undefined || sides.old === sides.new || this.isLenient) return;
    const side = frame.version === sides.new ? 'new' : frame.version === sides.old ? 'old' : undefined;
    if (side === undefined) fail(`a version that no redirect leads to: ${describe(task)}`);
    if (task.side !== 'none' && task.side !== side) fail(`a mix of versions: ${describe(task)}`);
    task.side = side;
  }

  #noteLibraryCall(task: SimulatedTask, { name, version }: SimulatedFrame): void {
    if (this.isLenient || this.#sides?.has(name) === true) return;
    const { patches } = this.#machine;
    const at = patches.findIndex(({ id }) => id === version);
    for (const [place, patch] of patches.entries()) {
      if (!patch.functions.some((fn) => fn.name === name)) continue;
      const side = at >= place ? 'new' : 'old';
      if (side !== (this.#library.get(patch.id) ?? side))
        fail(`a mix of versions in the library, as ${patch.id} is there or not: ${describe(task)}`);
      this.#library.set(patch.id, side);
    }
  }

  /** A task was switched by one of the rules. Unless unchecked, it must have left what goes. */
  noteSwitched(task: SimulatedTask, isPatched: boolean): void {
    if (!this.isLenient) this.#expectLeft(task, isPatched ? 'old' : 'new', 'was switched inside');
    task.ruled = isPatched;
    task.side = 'none';
    for (const frame of task.stack) this.noteCall(task, frame);
  }

  /** Of a task that has just done something. */
  expectTask(task: SimulatedTask): void {
    const top = task.stack[task.stack.length - 1];
    if (!this.isLenient && top !== undefined && !this.#isLoaded(top))
      fail(`a return into a version that is gone: ${describe(task)}`);
    if (this.#machine.change?.phase === 'running' && stateOf(task) !== task.ruled)
      fail(`a state that no rule has changed: ${describe(task)}`);
  }

  /** Behind every step of the tool. */
  expectAll(): void {
    for (const task of this.#machine.alive) this.expectTask(task);
  }

  /** The transition ends: nobody is inside of what goes. */
  noteFinished(direction: 'patch' | 'unpatch'): void {
    for (const task of this.#machine.alive) {
      if (task.ruled !== (direction === 'patch')) fail(`finished without ${describe(task)}`);
      if (!this.isLenient) this.#expectLeft(task, direction === 'patch' ? 'old' : 'new', 'would return into');
    }
    const { change, patches } = this.#machine;
    const patch = patches.find(({ id }) => id === change?.patch);
    for (const object of patch?.callbacks === undefined ? [] : (change?.objects ?? OBJECTS)) {
      const isThere = patch?.functions.some(
        (fn) => objectOf(fn.name) === object && this.#isThere(patch.id, fn.name),
      );
      const last = this.#ran.get(keyOf(patch?.id ?? '', object));
      if (isThere === true && last !== (direction === 'patch' ? 'postPatch' : undefined))
        fail(`finished, and the last callback of ${patch?.id} for the ${object} was ${last ?? 'none'}`);
    }
    this.#sides = undefined;
    this.#library.clear();
  }

  /**
   * The order of the kernel (Documentation/livepatch/callbacks.rst), and what the tasks must have by then. It follows what has run,
   * not what the target notes of it.
   */
  noteCallback(patch: SimulatedPatch, object: string, kind: CallbackKind): void {
    const key = keyOf(patch.id, object);
    const before = this.#ran.get(key);
    if (!MAY_FOLLOW[kind].includes(before))
      fail(`callback ${kind} of ${patch.id} for the ${object} behind ${before ?? 'none'}`);
    this.#ran.set(key, kind === 'postUnpatch' ? undefined : kind);
    const { change } = this.#machine;
    if (this.#sides === undefined || change?.patch !== patch.id) return;
    if (change.objects?.includes(object) === false || change.phase !== 'running') return;
    // Nobody runs what is about to go, whatever version tasks have.
    if (object === LIBRARY && this.#machine.library === 'going') return;
    // What an arrival that was taken back had begun is undone while tasks are on their way.
    if (object === LIBRARY && !this.#sides.has('x') && !this.#sides.has('y')) return;
    const wanted = kind === 'postPatch' || kind === 'preUnpatch';
    const other = this.#machine.alive.find((task) => task.ruled !== wanted);
    if (other !== undefined) fail(`callback ${kind} of ${patch.id} too early: ${describe(other)}`);
  }

  /** It was refused, and counts as not begun. */
  noteVeto(patch: SimulatedPatch, object: string): void {
    this.#ran.set(keyOf(patch.id, object), undefined);
  }

  /** Behind the last callback of an object that goes. */
  expectUndone(patch: SimulatedPatch, object: string): void {
    const last = patch.callbacks === undefined ? undefined : this.#ran.get(keyOf(patch.id, object));
    if (last !== undefined)
      fail(`the ${object} goes, and the last callback of ${patch.id} for it was ${last}`);
  }

  /** At rest every entry leads to the newest version of what is enabled, and to nothing else. */
  expectAtRest(patches: readonly SimulatedPatch[]): void {
    const machine = this.#machine;
    const ids = (list: readonly SimulatedPatch[]) => list.map((patch) => patch.id).join(' ');
    if (ids(machine.patches) !== ids(patches))
      fail(`the registry holds "${ids(machine.patches)}" and not "${ids(patches)}"`);
    if (machine.change !== undefined) fail('a transition is left over');
    if (machine.barrierGives !== undefined) fail('the barrier still switches tasks');
    // Of those that were replaced none runs any more; they can come anew.
    for (const key of this.#ran.keys())
      if (!patches.some((patch) => key.startsWith(`${patch.id} `))) this.#ran.delete(key);
    const there = patches.map(({ id, functions }) => ({
      id,
      functions: functions.filter(({ name }) => this.#isThere(id, name)),
    }));
    const versions = new VersionStack<SimulatedFunction>(there, (version) => version.name);
    for (const [name, entry] of machine.entries) {
      const newest = versions.newest(name)?.patch;
      if (entry.kind !== 'fixed' || entry.version !== newest)
        fail(`the entry of ${name} does not lead to ${newest ?? 'the original'}`);
    }
  }

  #expectLeft(task: SimulatedTask, leaving: 'old' | 'new', what: string): void {
    for (const frame of task.stack) {
      const sides = frame.part === 'exception' ? undefined : this.#sides?.get(frame.name);
      if (sides !== undefined && sides.old !== sides.new && frame.version === sides[leaving])
        fail(`${what} ${frame.name}@${frame.version ?? 'original'}: ${describe(task)}`);
    }
  }

  #isLoaded({ name, version }: SimulatedFrame): boolean {
    if (version === undefined) return objectOf(name) !== LIBRARY || this.#machine.library !== 'gone';
    const { patches, forced } = this.#machine;
    if (forced.has(version)) return true;
    return patches.some((patch) => patch.id === version) && this.#isThere(version, name);
  }
}

/** What changes with a patch: its functions, and when it replaces the older ones, theirs; as far as `takesPart` says. */
function sidesOf(
  patches: readonly SimulatedPatch[],
  patch: SimulatedPatch,
  takesPart: (name: string) => boolean,
  isThere: (patch: string, name: string) => boolean,
): ReadonlyMap<string, Sides> {
  const there = patches.map(({ id, functions }) => ({
    id,
    functions: functions.filter(({ name }) => isThere(id, name)),
  }));
  const versions = new VersionStack<SimulatedFunction>(there, (version) => version.name);
  const names = new Set(patch.functions.map((fn) => fn.name));
  if (patch.replaces) for (const other of there) for (const fn of other.functions) names.add(fn.name);
  return new Map(
    [...names].filter(takesPart).map((name) => [
      name,
      {
        old: versions.below(patch.id, name)?.patch,
        new: patch.functions.some((fn) => fn.name === name) ? patch.id : undefined,
      },
    ]),
  );
}

function keyOf(patch: string, object: string): string {
  return `${patch} ${object}`;
}

function describe(task: SimulatedTask): string {
  const stack = task.stack.map(({ name, part, version }) => {
    const suffix = part === 'body' || part === 'exception' ? '' : `.${part}`;
    return `${name}${suffix}@${version ?? 'original'}`;
  });
  return `task ${task.id} (${stateOf(task) ? 'patched' : 'unpatched'}) ${stack.join(' > ') || 'in nothing'}`;
}

function fail(what: string): never {
  throw new ConsistencyViolation(what);
}
