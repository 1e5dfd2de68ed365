import type { Direction } from '../../engine/target.js';
import { VersionStack } from '../../engine/version-stack.js';
import { pokeRegister } from './native.js';
import { asInstalled, isWithin, partsOf, restrictTo, retirePart, withoutParts } from './patch-objects.js';
import { RIP, readRegister } from './registers.js';
import type {
  MemoryRange,
  RegisteredFunction,
  RegisteredPatch,
  Registry,
  RetiredImage,
  SlotArea,
} from './registry.js';
import type { Tracee } from './tracer.js';

/** The versions of every patched function, by the address of the original. */
export function versionStack(
  patches: readonly RegisteredPatch[],
): VersionStack<RegisteredFunction, RegisteredPatch> {
  return new VersionStack(patches, (version) => version.old.address);
}

/** What each function of a patch takes the place of: the code that no switched task may hold on its stack. */
export function rangesBelow(registry: Registry, patch: RegisteredPatch): readonly MemoryRange[] {
  const stack = versionStack(registry.patches);
  // With a patch that is replaced all of its code goes, also what it only added.
  const replaced = patch.replaces === true ? registry.patches.filter((p) => p.id !== patch.id) : [];
  return [
    ...replaced.flatMap((older) => partsOf(older).map((part) => part.code)),
    ...patch.functions.flatMap((fn) => {
      const below = stack.below(patch.id, fn.old.address);
      return below === undefined ? [fn.old, ...fn.oldParts] : [below.new, ...below.newParts];
    }),
  ];
}

/** Everything that a switched thread must not return into: the versions that the direction takes away. */
export function rangesLeaving(
  registry: Registry,
  patch: RegisteredPatch,
  direction: Direction,
): readonly MemoryRange[] {
  if (direction === 'patch') return [...rangesBelow(registry, patch), ...decidedRanges(patch)];
  const restored = patch.functions.filter((fn) => fn.restores === true);
  return [
    ...partsOf(patch).map((part) => part.code),
    ...restored.flatMap((fn) => [fn.old, ...fn.oldParts]),
    ...decidedRanges(patch),
  ];
}

/** Behind the reading of a thread's state, in the trampolines: a thread that a signal has interrupted there has decided. */
function decidedRanges(patch: RegisteredPatch): readonly MemoryRange[] {
  return redirectsOf(patch).flatMap(({ redirect: { trampoline } }) => {
    const { address, belowEntry, gateAt = address } = trampoline;
    return [
      { address: gateAt, sizeBytes: address - gateAt },
      { address: address + 1, sizeBytes: belowEntry - address - 1 },
    ];
  });
}

/** The record of a removed patch's memory; `inUse` until each thread has been looked at. */
export function retire(patch: RegisteredPatch): readonly RetiredImage[] {
  return partsOf(patch).map((part) => ({
    ...retirePart(part, patch.forced),
    displaced: redirectsOf(patch)
      .filter(({ redirect: { trampoline } }) => isWithin(part.image, trampoline.address))
      .map(({ old, redirect }) => ({ old, trampoline: redirect.trampoline })),
  }));
}

/** What the registry says once every task has switched and the entries are final. One update: killed, a run leaves all or nothing of it. */
export function afterTransition(
  registry: Registry,
  patchId: string,
  objects: readonly string[] | undefined,
  direction: Direction,
): Pick<Registry, 'patches' | 'transition' | 'retired'> {
  const patch = registry.patches.find((p) => p.id === patchId);
  if (patch === undefined) throw new Error(`patch ${patchId} is not in the registry`);
  const others = registry.patches.filter((other) => other !== patch);
  const update = (patches: readonly RegisteredPatch[], retired: readonly RetiredImage[]) => ({
    patches,
    transition: undefined,
    retired: [...registry.retired, ...retired],
  });
  const replaced = (changed: RegisteredPatch) =>
    registry.patches.map((each) => (each === patch ? changed : each));
  if (direction === 'unpatch') {
    const retired = retire(restrictTo(patch, objects));
    return update(objects === undefined ? others : replaced(withoutParts(patch, objects)), retired);
  }
  const applied = asInstalled({ ...patch, state: 'applied' }, objects);
  // With the older patches gone, the redirects to them are, too.
  return patch.replaces === true
    ? update([asOnlyPatch(applied)], others.flatMap(retire))
    : update(replaced(applied), []);
}

/** A patch that has replaced all others, as if it had been alone from the beginning. */
function asOnlyPatch(patch: RegisteredPatch): RegisteredPatch {
  const { replaces, ...rest } = patch;
  return {
    ...rest,
    functions: patch.functions
      .filter((fn) => fn.restores !== true)
      .map(({ afterReplace, ...fn }) =>
        afterReplace === undefined ? fn : { ...fn, redirect: afterReplace },
      ),
  };
}

/** Everything whose entry a transition changes. */
export function redirectsOf(
  patch: RegisteredPatch,
): readonly Pick<RegisteredFunction, 'name' | 'old' | 'redirect'>[] {
  return patch.barrier === undefined ? patch.functions : [...patch.functions, patch.barrier];
}

/**
 * The function whose trampoline a stopped thread is in behind the reading of its state: it has decided already. In a
 * barrier's it is about to set its state by itself.
 */
export function decidedFunction(tracee: Tracee, patch: RegisteredPatch): string | undefined {
  const ip = readRegister(tracee.registers, RIP);
  return redirectsOf(patch).find(({ redirect: { trampoline } }) => {
    const { address, belowEntry, gateAt = address } = trampoline;
    return ip >= gateAt && ip < belowEntry && ip !== address;
  })?.name;
}

/**
 * Whether a thread that a signal has interrupted will read or set its GS slot when its handler returns: then it keeps its GS
 * base, which leads where everybody is led by now. `frames`: its stack, innermost first; see {@link leaveTrampoline} for that one.
 */
export function usesSlotLater(frames: readonly { readonly pc: number }[], patch: RegisteredPatch): boolean {
  const places = new Set([
    ...patch.functions.map(({ redirect: { trampoline } }) => trampoline.address),
    ...(patch.barrier?.slotUses ?? []).map(({ at }) => at),
  ]);
  return frames.slice(1).some(({ pc }) => places.has(pc));
}

/**
 * Moves a stopped thread that is about to read its GS slot, which will be gone, to where the read would lead.
 * A table stays mapped, and a thread behind the read has decided: both go on by themselves.
 */
export function leaveTrampoline(
  tracee: Tracee,
  patch: RegisteredPatch,
  area: SlotArea,
  direction: Direction,
): void {
  if (area.kind !== 'gsBase') return;
  const ip = readRegister(tracee.registers, RIP);
  for (const fn of patch.functions) {
    const { address, belowEntry } = fn.redirect.trampoline;
    if (ip === address) pokeRegister(tracee.tid, RIP, direction === 'patch' ? fn.new.address : belowEntry);
  }
  const use = patch.barrier?.slotUses.find(({ at }) => at === ip);
  if (use !== undefined) pokeRegister(tracee.tid, RIP, use.resumeAt);
}
