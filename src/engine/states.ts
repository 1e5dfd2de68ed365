/** A change that a patch makes to the state of a program beyond its code (struct klp_state, include/linux/livepatch.h). */
export interface SystemState {
  readonly id: number;
  readonly version: number;
}

export interface PatchWithStates {
  readonly name: string;
  readonly states: readonly SystemState[];
}

/** Why a patch can't come on top of the enabled ones, or take their place. */
export interface StateConflict {
  readonly enabled: string;
  readonly id: number;
  readonly enabledVersion: number;
  /** Undefined when the new patch does not know the state at all. */
  readonly version: number | undefined;
}

/**
 * The rule of the kernel (klp_is_patch_compatible, kernel/livepatch/state.c): a patch must know every state of those that it
 * replaces, and may be older in none that it knows.
 */
export function findStateConflict(
  patch: { readonly replaces: boolean; readonly states: readonly SystemState[] },
  enabled: readonly PatchWithStates[],
): StateConflict | undefined {
  for (const other of enabled) {
    for (const { id, version: enabledVersion } of other.states) {
      const version = patch.states.find((state) => state.id === id)?.version;
      if (version === undefined ? patch.replaces : version < enabledVersion)
        return { enabled: other.name, id, enabledVersion, version };
    }
  }
  return undefined;
}
