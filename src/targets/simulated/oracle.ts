import type { CallbackKind } from '../../engine/callbacks.js';
import { VersionStack } from '../../engine/version-stack.js';
import type { SimulatedFunction, SimulatedMachine, SimulatedPatch } from './machine.js';
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
  /** The last callback that ran of each patch, until it is gone. */
  readonly #ran = new Map<string, CallbackKind | undefined>();

  constructor(machine: SimulatedMachine) {
    this.#machine = machine;
  }

  /** The states of tasks begin to count: all must be the one that leads to the versions they have. */
  noteBegun(patch: SimulatedPatch, direction: 'patch' | 'unpatch'): void {
    this.#sides = sidesOf(this.#machine.patches, patch);
    for (const task of this.#machine.alive) {
      task.ruled = direction === 'unpatch';
      task.side = 'none';
      this.#expectLeft(task, task.ruled ? 'old' : 'new', 'begins in');
      for (const frame of task.stack) this.noteCall(task, frame);
    }
  }

  /** The rules of a call: in one task, functions that change together are never met in two versions between two switches. */
  noteCall(task: SimulatedTask, frame: SimulatedFrame): void {
    if (!this.isLenient && frame.version !== undefined && !this.#isLoaded(frame.version))
      fail(`task ${task.id} calls ${frame.name}@${frame.version}, which is gone`);
    const sides = frame.part === 'exception' ? undefined : this.#sides?.get(frame.name);
    if (sides === undefined || sides.old === sides.new || this.isLenient) return;
    const side = frame.version === sides.new ? 'new' : frame.version === sides.old ? 'old' : undefined;
    if (side === undefined) fail(`a version that no redirect leads to: ${describe(task)}`);
    if (task.side !== 'none' && task.side !== side) fail(`a mix of versions: ${describe(task)}`);
    task.side = side;
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
    if (!this.isLenient && top?.version !== undefined && !this.#isLoaded(top.version))
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
    const patch = this.#machine.patches.find(({ id }) => id === this.#machine.change?.patch);
    const last = this.#ran.get(patch?.id ?? '');
    if (patch?.callbacks !== undefined && last !== (direction === 'patch' ? 'postPatch' : undefined))
      fail(`finished, and the last callback of ${patch.id} was ${last ?? 'none'}`);
    this.#sides = undefined;
  }

  /**
   * The order of the kernel (Documentation/livepatch/callbacks.rst), and what the tasks must have by then. It follows what has run,
   * not what the target notes of it.
   */
  noteCallback(patch: SimulatedPatch, kind: CallbackKind): void {
    const before = this.#ran.get(patch.id);
    if (!MAY_FOLLOW[kind].includes(before))
      fail(`callback ${kind} of ${patch.id} behind ${before ?? 'none'}`);
    this.#ran.set(patch.id, kind === 'postUnpatch' ? undefined : kind);
    // Whoever has asked for a mix has it here, too.
    if (this.#sides === undefined || this.#machine.change?.patch !== patch.id) return;
    const wanted = kind === 'postPatch' || kind === 'preUnpatch';
    const other = this.#machine.alive.find((task) => task.ruled !== wanted);
    if (other !== undefined) fail(`callback ${kind} of ${patch.id} too early: ${describe(other)}`);
  }

  /** It was refused, and counts as not begun. */
  noteVeto(patch: SimulatedPatch): void {
    this.#ran.set(patch.id, undefined);
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
    for (const id of this.#ran.keys()) if (!patches.some((patch) => patch.id === id)) this.#ran.delete(id);
    const versions = new VersionStack<SimulatedFunction>(patches, (version) => version.name);
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

  #isLoaded(version: string): boolean {
    const { patches, forced } = this.#machine;
    return patches.some((patch) => patch.id === version) || forced.has(version);
  }
}

/** What changes with a patch: its functions, and when it replaces the older ones, theirs. */
function sidesOf(patches: readonly SimulatedPatch[], patch: SimulatedPatch): ReadonlyMap<string, Sides> {
  const versions = new VersionStack<SimulatedFunction>(patches, (version) => version.name);
  const names = new Set(patch.functions.map((fn) => fn.name));
  if (patch.replaces) for (const other of patches) for (const fn of other.functions) names.add(fn.name);
  return new Map(
    [...names].map((name) => [
      name,
      {
        old: versions.below(patch.id, name)?.patch,
        new: patch.functions.some((fn) => fn.name === name) ? patch.id : undefined,
      },
    ]),
  );
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
