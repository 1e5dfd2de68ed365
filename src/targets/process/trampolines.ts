import type { Direction } from '../../engine/target.js';
import { VersionStack } from '../../engine/version-stack.js';
import { pokeRegister } from './native.js';
import { RIP, readRegister } from './registers.js';
import type { MemoryRange, RegisteredFunction, RegisteredPatch, Registry, SlotArea } from './registry.js';
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
  return patch.functions.flatMap((fn) => {
    const below = stack.below(patch.id, fn.old.address);
    return below === undefined ? [fn.old, ...fn.oldParts] : [below.new, ...below.newParts];
  });
}

/** Everything that a switched thread must not return into: the versions that the direction takes away. */
export function rangesLeaving(
  registry: Registry,
  patch: RegisteredPatch,
  direction: Direction,
): readonly MemoryRange[] {
  return direction === 'unpatch' ? [patch.code] : rangesBelow(registry, patch);
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
    return ip > trampoline.address && ip < trampoline.belowEntry;
  })?.name;
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
