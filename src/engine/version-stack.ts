import { LivegraftError } from '../base/errors.js';

/**
 * Functions keep a stack of versions (DESIGN.md section 2, rule 3): the original, and on it one for each enabled patch
 * that changes the function, in the order in which they were enabled. Plain data in, plain data out.
 */

/** A function of the target. `function` tells same-named local symbols apart, e.g. `parse,2` with the sympos. */
export interface FunctionName {
  readonly object: string;
  readonly function: string;
}

/** An enabled patch, or one to be enabled. `id` is unique among them. */
export interface VersionedPatch {
  readonly id: string;
  readonly functions: readonly FunctionName[];
}

export type FunctionVersion =
  | { readonly kind: 'original' }
  /** The one that the patch with this id brought. */
  | { readonly kind: 'patch'; readonly patch: string };

/** What a transition does to one function. Both versions run side by side until it ends. */
export interface VersionChange extends FunctionName {
  /** No task may hold it on its stack when it switches. */
  readonly leaves: FunctionVersion;
  readonly comes: FunctionVersion;
}

/** A later patch that a removal would pull the ground from under, and the functions that both change. */
export interface RemovalBlocker {
  readonly patch: string;
  readonly functions: readonly FunctionName[];
}

/**
 * The version that every task runs while no transition does. `enabled`: oldest first.
 * A function that no enabled patch changes has its original.
 */
export function findCurrentVersion(enabled: readonly VersionedPatch[], name: FunctionName): FunctionVersion {
  const patch = enabled.toReversed().find((candidate) => changes(candidate, name));
  return patch === undefined ? { kind: 'original' } : { kind: 'patch', patch: patch.id };
}

/**
 * For a transition that enables `patch` on top of `enabled` (oldest first): what each function has now leaves.
 * Throws `already-applied` when a patch with this id is enabled.
 */
export function planPatch(
  enabled: readonly VersionedPatch[],
  patch: VersionedPatch,
): readonly VersionChange[] {
  if (enabled.some(({ id }) => id === patch.id)) {
    throw new LivegraftError('already-applied', `patch ${patch.id} is enabled already`, {
      remedy: 'nothing to do',
      details: { patch: patch.id },
    });
  }
  return patch.functions.map((name) => ({
    ...name,
    leaves: findCurrentVersion(enabled, name),
    comes: { kind: 'patch', patch: patch.id },
  }));
}

/**
 * For a transition that removes the patch with `id` from `enabled` (oldest first): its versions leave, the ones below
 * come. Throws `no-such-patch` when it is not enabled, and `not-on-top` when a later patch changes one of its functions.
 */
export function planUnpatch(enabled: readonly VersionedPatch[], id: string): readonly VersionChange[] {
  const index = expectIndex(enabled, id);
  const [blocker] = findRemovalBlockers(enabled, id);
  if (blocker !== undefined) {
    const names = blocker.functions.map(describe).join(', ');
    throw new LivegraftError(
      'not-on-top',
      `patch ${id} lies below ${blocker.patch}, which changes ${names} too`,
      {
        remedy: `remove ${blocker.patch} first`,
        details: { patch: id, above: blocker.patch },
      },
    );
  }
  const below = enabled.slice(0, index);
  return (enabled[index]?.functions ?? []).map((name) => ({
    ...name,
    leaves: { kind: 'patch', patch: id },
    comes: findCurrentVersion(below, name),
  }));
}

/**
 * The later patches that stand in the way of removing the one with `id`, newest first (the order to remove them in).
 * Empty when it may be removed. Throws `no-such-patch` when it is not enabled.
 */
export function findRemovalBlockers(
  enabled: readonly VersionedPatch[],
  id: string,
): readonly RemovalBlocker[] {
  const index = expectIndex(enabled, id);
  const functions = enabled[index]?.functions ?? [];
  return enabled
    .slice(index + 1)
    .toReversed()
    .map((later) => ({ patch: later.id, functions: functions.filter((name) => changes(later, name)) }))
    .filter((blocker) => blocker.functions.length > 0);
}

function changes(patch: VersionedPatch, name: FunctionName): boolean {
  return patch.functions.some((own) => own.object === name.object && own.function === name.function);
}

function expectIndex(enabled: readonly VersionedPatch[], id: string): number {
  const index = enabled.findIndex((patch) => patch.id === id);
  if (index >= 0) return index;
  throw new LivegraftError('no-such-patch', `no patch ${id} is enabled`, {
    remedy:
      enabled.length === 0 ? 'nothing is patched' : `enabled are: ${enabled.map((p) => p.id).join(', ')}`,
    details: { patch: id },
  });
}

function describe(name: FunctionName): string {
  return `${name.object}:${name.function}`;
}
