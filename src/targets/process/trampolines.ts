import type { Direction } from '../../engine/target.js';
import { pokeRegister } from './native.js';
import { RIP, readRegister } from './registers.js';
import type { MemoryRange, RegisteredFunction, RegisteredPatch, Registry, SlotArea } from './registry.js';
import type { Tracee } from './tracer.js';

/** The registered version of a function right below the given patch, undefined when that is the original. */
function findVersionBelow(
  registry: Registry,
  patch: RegisteredPatch,
  fn: RegisteredFunction,
): RegisteredFunction | undefined {
  const index = registry.patches.findIndex((p) => p.id === patch.id);
  const earlier = index < 0 ? registry.patches : registry.patches.slice(0, index);
  for (const candidate of earlier.toReversed()) {
    const found = candidate.functions.find((f) => f.old.address === fn.old.address);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** The newest registered version of the function whose original starts at `oldAddress`. */
export function findNewestVersion(registry: Registry, oldAddress: number): RegisteredFunction | undefined {
  for (const patch of registry.patches.toReversed()) {
    const found = patch.functions.find((f) => f.old.address === oldAddress);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** What each function of a patch takes the place of: the code that no switched task may hold on its stack. */
export function rangesBelow(registry: Registry, patch: RegisteredPatch): readonly MemoryRange[] {
  return patch.functions.flatMap((fn) => {
    const below = findVersionBelow(registry, patch, fn);
    return below === undefined ? [fn.old, ...fn.oldParts] : [below.new, ...below.newParts];
  });
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
}
