/** A patch as far as versions go: `F` is whatever a target keeps of one function's new version. */
export interface VersionedPatch<F> {
  readonly id: string;
  readonly functions: readonly F[];
}

/**
 * Functions keep a stack of versions (DESIGN.md section 2, rule 3): the original, and on it one for each enabled patch
 * that changes the function, in the order in which they were enabled. Immutable.
 */
export class VersionStack<F, P extends VersionedPatch<F> = VersionedPatch<F>> {
  readonly #patches: readonly P[];
  readonly #keyOf: (version: F) => string | number;

  /** `patches`: the enabled ones, oldest first. `keyOf` names the function that a version is of. */
  constructor(patches: readonly P[], keyOf: (version: F) => string | number) {
    this.#patches = patches;
    this.#keyOf = keyOf;
  }

  /** The version on top of a function's stack, undefined for the original. */
  newest(key: string | number): F | undefined {
    return this.#newestOf(this.#patches, key);
  }

  /** The version right below the one that patch `id` brought, or will bring; undefined for the original. */
  below(id: string, key: string | number): F | undefined {
    const index = this.#patches.findIndex((patch) => patch.id === id);
    return this.#newestOf(index < 0 ? this.#patches : this.#patches.slice(0, index), key);
  }

  /** Later patches that change one of this patch's functions: they must be removed before it, the newest first. */
  above(id: string): readonly P[] {
    const index = this.#patches.findIndex((patch) => patch.id === id);
    if (index < 0) return [];
    const own = new Set((this.#patches[index] as P).functions.map(this.#keyOf));
    return this.#patches
      .slice(index + 1)
      .filter((later) => later.functions.some((version) => own.has(this.#keyOf(version))))
      .toReversed();
  }

  #newestOf(patches: readonly P[], key: string | number): F | undefined {
    for (const patch of patches.toReversed()) {
      const found = patch.functions.find((version) => this.#keyOf(version) === key);
      if (found !== undefined) return found;
    }
    return undefined;
  }
}
