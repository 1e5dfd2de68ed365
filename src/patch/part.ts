import { LivegraftError } from '../base/errors.js';
import type { Patch } from './content.js';
import type { PatchObject } from './manifest.js';

/**
 * Sections of instructions that may fault, one for each section of a kernel's code, and one without a suffix that has all of them, for
 * the function that looks them up (`src/build/kernel-exceptions.ts`).
 */
export const EXCEPTIONS = '.livegraft.exceptions';
/** The symbol of that function. */
export const EXCEPTION_SEARCH = 'livegraft_search_exception_tables';

/**
 * What of a patch is for one of its objects, as a patch of its own: the sections that its functions are in, and all that
 * these refer to or that refers to them. Objects come and go one by one, so that each needs its part by itself.
 * Throws `parts-connected` when code of one object refers to code or data of the patch that is for another.
 */
export function partOf(patch: Patch, object: PatchObject): Patch {
  if (patch.manifest.objects.length === 1) return patch;
  const kept = [...sectionsFor(patch, object)].sort((a, b) => a - b);
  const place = new Map(kept.map((index, i) => [index, i]));
  return {
    ...patch,
    manifest: {
      ...patch.manifest,
      objects: [object],
      states: (patch.manifest.states ?? []).filter(({ symbol: name }) =>
        patch.symbols.some((s) => s.kind === 'defined' && s.name === name && place.has(s.section)),
      ),
    },
    sections: patch.sections.filter((_, index) => place.has(index)),
    symbols: patch.symbols.map((symbol) =>
      symbol.kind === 'defined' ? { ...symbol, section: place.get(symbol.section) ?? -1 } : symbol,
    ),
  };
}

/** The indexes of the sections of {@link partOf}. Throws `parts-connected` likewise. */
export function sectionsFor(patch: Patch, object: PatchObject): ReadonlySet<number> {
  const { objects } = patch.manifest;
  const group = groupSections(patch);
  const groupsOf = ({ functions, callbacks }: PatchObject): ReadonlySet<number> => {
    const names = [...functions.map((fn) => fn.newSymbol), ...Object.values(callbacks ?? {})];
    return new Set(
      patch.symbols.flatMap((symbol) =>
        symbol.kind === 'defined' && symbol.section >= 0 && names.includes(symbol.name)
          ? [group[symbol.section] as number]
          : [],
      ),
    );
  };
  const own = groupsOf(object);
  for (const other of objects) {
    if (other === object || ![...groupsOf(other)].some((id) => own.has(id))) continue;
    throw new LivegraftError(
      'parts-connected',
      `the patch's code for ${object.name} and for ${other.name} refer to each other`,
      {
        remedy: 'build one patch for each object, and combine them',
        details: { object: object.name, other: other.name },
      },
    );
  }
  return new Set(patch.sections.flatMap((_, index) => (own.has(group[index] as number) ? [index] : [])));
}

/** A number for each section, the same for those that relocations connect. */
function groupSections({ sections, symbols }: Patch): readonly number[] {
  const parent = sections.map((_, index) => index);
  const find = (index: number): number => {
    let at = index;
    while (parent[at] !== at) at = parent[at] as number;
    parent[index] = at;
    return at;
  };
  sections.forEach(({ name, relocations }, index) => {
    // Where an instruction of code that is not there yet would go on: nobody can be at it.
    if (name.startsWith(EXCEPTIONS)) return;
    for (const { symbolIndex } of relocations) {
      const symbol = symbols[symbolIndex];
      if (symbol?.kind === 'defined' && symbol.section >= 0) parent[find(index)] = find(symbol.section);
    }
  });
  return sections.map((_, index) => find(index));
}
