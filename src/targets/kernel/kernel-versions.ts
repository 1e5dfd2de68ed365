import type { Direction } from '../../engine/target.js';
import { VersionStack } from '../../engine/version-stack.js';
import { withoutModules } from './kernel-patch-modules.js';
import type {
  KernelRange,
  KernelRegistry,
  RegisteredKernelFunction,
  RegisteredKernelPatch,
} from './kernel-registry.js';
import { copyBehind, encodeJump } from './kernel-trampoline.js';

/** The patches whose functions tasks run or may come to run, oldest first. One that was only loaded is none of them. */
export function enabledPatches({
  patches,
  transition,
}: Pick<KernelRegistry, 'patches' | 'transition'>): readonly RegisteredKernelPatch[] {
  return patches.filter(
    ({ id, state }) =>
      state === 'applied' || state === 'reverting' || (state === 'applying' && transition?.patchId === id),
  );
}

/** The versions of every patched function, by the address of the original. */
export function kernelVersions(
  patches: readonly RegisteredKernelPatch[],
): VersionStack<RegisteredKernelFunction, RegisteredKernelPatch> {
  return new VersionStack(patches, (fn) => entryOf(fn.old));
}

/** The address of a version's first instruction. */
export function entryOf([first]: readonly KernelRange[]): number {
  if (first === undefined) throw new Error('a registered function without a range');
  return first.address;
}

/** Where the original goes on behind what was written over its entry. */
function behindEntry(fn: RegisteredKernelFunction): number {
  return fn.isDisplaced ? copyBehind(fn.trampoline) : fn.site + fn.original.length;
}

/**
 * One patch among those of a kernel: where each of its entries leads before and behind its transition, and which code a task that
 * switches must not return into.
 */
export class PatchVersions {
  readonly patch: RegisteredKernelPatch;
  /** All that are enabled, this one too. */
  readonly #patches: readonly RegisteredKernelPatch[];
  readonly #versions: VersionStack<RegisteredKernelFunction, RegisteredKernelPatch>;

  /** `registry` has a record of the patch. */
  constructor(registry: Pick<KernelRegistry, 'patches' | 'transition'>, patch: RegisteredKernelPatch) {
    this.patch = patch;
    this.#patches = enabledPatches(registry);
    this.#versions = kernelVersions(this.#patches);
  }

  /** Where a task goes from an entry that has not switched to the patch: the version below, or the original. */
  entryBelow(fn: RegisteredKernelFunction): number {
    const below = this.#below(fn);
    return below === undefined ? behindEntry(fn) : entryOf(below.new);
  }

  /** Where a task goes that has switched. */
  entryOwn(fn: RegisteredKernelFunction): number {
    return fn.restores === true ? behindEntry(fn) : entryOf(fn.new);
  }

  /** Where a jump of livegraft's at an entry may lead: to this patch's redirect or any version. */
  jumpTargets(fn: RegisteredKernelFunction): readonly number[] {
    const entry = entryOf(fn.old);
    const versions = [this.patch, ...this.#patches]
      .flatMap(({ functions }) => functions)
      .filter((each) => entryOf(each.old) === entry);
    return versions.flatMap((each) => [
      each.trampoline,
      ...each.new.slice(0, 1).map(({ address }) => address),
    ]);
  }

  /** What an entry is when every task has switched. */
  finalBytes(fn: RegisteredKernelFunction, direction: Direction): Uint8Array {
    const below = this.#below(fn);
    const isOriginal = direction === 'patch' ? fn.restores === true : below === undefined;
    if (isOriginal) return Uint8Array.from(fn.original);
    return encodeJump(fn.site, direction === 'patch' ? this.entryOwn(fn) : this.entryBelow(fn));
  }

  /**
   * The code that a direction takes away. To patch, these are all versions below, since one that was forced may have left tasks in any
   * of them, and all code of patches that are replaced. `isGone` tells functions of modules that were unloaded: nothing can be in them.
   */
  leaving(direction: Direction, isGone: (fn: RegisteredKernelFunction) => boolean): readonly KernelRange[] {
    const { functions, replaces } = this.patch;
    const originals = (fns: readonly RegisteredKernelFunction[]) =>
      fns.flatMap((fn) => (isGone(fn) ? [] : fn.old));
    if (direction === 'unpatch')
      return [...codeOf(this.patch), ...originals(functions.filter((fn) => fn.restores === true))];
    const index = this.#patches.findIndex(({ id }) => id === this.patch.id);
    const older = index < 0 ? this.#patches : this.#patches.slice(0, index);
    if (replaces === true)
      return [...older.flatMap(codeOf), ...originals(functions.filter((fn) => fn.restores !== true))];
    const changed = new Set(functions.map((fn) => entryOf(fn.old)));
    const below = older.flatMap((each) => each.functions.filter((fn) => changed.has(entryOf(fn.old))));
    return [...below.flatMap((fn) => fn.new), ...originals(functions)];
  }

  #below(fn: RegisteredKernelFunction): RegisteredKernelFunction | undefined {
    return this.#versions.below(this.patch.id, entryOf(fn.old));
  }
}

/** All code of a patch. The ranges of its functions come first, since they have names. */
function codeOf({ name, text, functions }: RegisteredKernelPatch): readonly KernelRange[] {
  return [...functions.flatMap((fn) => fn.new), { name: `patch ${name}`, ...text }];
}

/** What a completed transition leaves: a cumulative patch is then as if it had been alone from the beginning. */
export function afterTransition(
  registry: KernelRegistry,
  id: string,
  direction: Direction,
  forced: boolean,
): KernelRegistry {
  const late = registry.transition?.patchId === id ? registry.transition.objects : undefined;
  const settled = registry.patches.map((patch): RegisteredKernelPatch => {
    if (patch.id !== id) return patch;
    // Of an applied patch, modules that came later.
    if (late !== undefined) {
      const forcedNow = { ...patch, forced: patch.forced || forced };
      return direction === 'patch' ? forcedNow : withoutModules(forcedNow, late);
    }
    const { replaces: _, ...rest } = patch;
    const functions = patch.functions.filter((fn) => fn.restores !== true);
    const objects = new Set(functions.map(({ object }) => object));
    return {
      ...rest,
      functions,
      modules: patch.modules.filter(({ name }) => objects.has(name)),
      forced: patch.forced || forced,
      state: direction === 'patch' ? 'applied' : 'reverted',
    };
  });
  const replaced = direction === 'patch' && registry.patches.some((each) => each.id === id && each.replaces);
  const patches = replaced
    ? settled.map((each) => (each.id === id ? each : { ...each, state: 'reverted' as const }))
    : settled;
  return { ...registry, patches, transition: undefined };
}
