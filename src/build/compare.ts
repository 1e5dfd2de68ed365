import * as c from '../elf/constants.js';
import type { ElfRelocation, ElfSection } from '../elf/elf-file.js';
import {
  type Definition,
  type ObjectModel,
  parentOfPart,
  type Reference,
  relocatedBytes,
  stableName,
} from './object-model.js';
import { parseAlternative, placeOf, type SpecialEntry } from './special-sections.js';

/** What two compilations of one source file have in common, by the names of the patched one. */
export interface Comparison {
  /** Functions that exist in both and differ. */
  readonly changedFunctions: readonly Pair[];
  readonly newFunctions: readonly Definition[];
  readonly changedData: readonly Pair[];
  readonly newData: readonly Definition[];
  /** Static variables of functions that may or may not be ones of the original: nothing tells. */
  readonly ambiguousData: readonly Definition[];
  /** For each definition of the patched object that the original has too. */
  readonly counterpart: ReadonlyMap<Definition, Definition>;
}

export interface Pair {
  readonly original: Definition;
  readonly patched: Definition;
}

/** Compares two compilations function by function and variable by variable. */
export function compareObjects(original: ObjectModel, patched: ObjectModel): Comparison {
  const { pairs: counterpart, ambiguous } = correlate(original, patched);
  const isFunction = (d: Definition) => d.kind === 'function';
  let changed: readonly Pair[];
  let replaced: readonly Definition[];
  do {
    const comparer = new Comparer(original, patched, counterpart);
    changed = [...counterpart].flatMap(([b, a]) =>
      comparer.sameDefinition(a, b) ? [] : [{ original: a, patched: b }],
    );
    // A constant that only this file can refer to needs no counterpart: what refers to it gets the new one, and so
    // counts as changed in the next round. A table of labels goes with its function, whatever its offsets.
    const functions = new Set(changed.map((pair) => pair.patched).filter(isFunction));
    const hasMoved = (d: Definition) =>
      referencesOf(patched, d).some(
        (r) => r.kind === 'definition' && r.offset !== 0 && functions.has(r.definition),
      );
    replaced = [
      ...changed.map((pair) => pair.patched),
      ...[...counterpart.keys()].filter((d) => d.kind === 'data' && hasMoved(d)),
    ].filter((d) => isPrivateConstant(d, patched));
    for (const constant of replaced) counterpart.delete(constant);
  } while (replaced.length > 0);
  const changedFunctions = changed.filter((pair) => isFunction(pair.patched));
  const isNew = (d: Definition) => !counterpart.has(d);
  return {
    ambiguousData: ambiguous,
    counterpart,
    changedFunctions: withParents(changedFunctions, patched, counterpart),
    newFunctions: [...patched.definitions.values()].filter((d) => isFunction(d) && isNew(d)),
    changedData: changed.filter((pair) => !isFunction(pair.patched)),
    newData: [...patched.definitions.values()].filter((d) => !isFunction(d) && isNew(d)),
  };
}

/** A changed `f.cold` is reached only through `f`: the function changes with its part. */
function withParents(
  changed: readonly Pair[],
  patched: ObjectModel,
  counterpart: ReadonlyMap<Definition, Definition>,
): Pair[] {
  const pairs = new Map<Definition, Pair>();
  for (const pair of changed) {
    const parentName = parentOfPart(pair.patched.name);
    const parent = parentName === undefined ? undefined : patched.definitions.get(parentName);
    if (parent === undefined) {
      pairs.set(pair.patched, pair);
      continue;
    }
    const original = counterpart.get(parent);
    if (original !== undefined) pairs.set(parent, { original, patched: parent });
  }
  return [...pairs.values()];
}

/** Pairs definitions by name, then by name without the numbers that compilers append. */
function correlate(original: ObjectModel, patched: ObjectModel) {
  const pairs = new Map<Definition, Definition>();
  const ambiguous: Definition[] = [];
  const numbered = (name: string) => stableName(name) !== name;
  for (const definition of patched.definitions.values()) {
    if (numbered(definition.name)) continue;
    const same = original.definitions.get(definition.name);
    if (same !== undefined && same.kind === definition.kind) pairs.set(definition, same);
  }
  const groupsOf = (model: ObjectModel) => {
    const groups = new Map<string, Definition[]>();
    for (const definition of model.definitions.values()) {
      if (!numbered(definition.name)) continue;
      const key = `${definition.kind} ${stableName(definition.name)}`;
      groups.set(key, [...(groups.get(key) ?? []), definition]);
    }
    return groups;
  };
  const before = groupsOf(original);
  for (const [key, group] of groupsOf(patched)) {
    const free = new Set(before.get(key) ?? []);
    const left = new Set(group);
    const pair = (a: Definition, b: Definition) => {
      pairs.set(b, a);
      free.delete(a);
      left.delete(b);
    };
    const pairWhere = (same: (a: Definition, b: Definition) => boolean) => {
      for (const b of [...left]) {
        const match = [...free].find((a) => same(a, b));
        if (match !== undefined) pair(match, b);
      }
    };
    if (group.every((d) => d.kind === 'function' || isPrivateConstant(d, patched))) {
      // Which of several clones or constants is paired with which is a matter of how much appears changed, not of
      // correctness: their callers are compared through the pairs.
      pairWhere((a, b) => sameBytes(a.section.data, b.section.data));
      if (group[0]?.kind === 'function') pairWhere(() => true);
      continue;
    }
    if (free.size === 1 && left.size === 1) {
      pairWhere(() => true);
      continue;
    }
    // Variables keep their state: which is which is told by the functions that use them.
    const users = (model: ObjectModel, d: Definition) =>
      [...model.usersOf(d)].map(stableName).sort().join(' ');
    pairWhere(
      (a, b) => a.symbol.sizeBytes === b.symbol.sizeBytes && users(original, a) === users(patched, b),
    );
    pairWhere((a, b) => {
      const known = new Set([...original.usersOf(a)].map(stableName));
      return [...patched.usersOf(b)].some((user) => known.has(stableName(user)));
    });
    if (free.size > 0) ambiguous.push(...left);
  }
  return { pairs, ambiguous };
}

/**
 * Read-only data that no other file can name, and that holds no address but those of texts and of labels in functions: a
 * table of functions may be registered somewhere, so that a new one would not be seen.
 */
function isPrivateConstant(definition: Definition, model: ObjectModel): boolean {
  const { kind, symbol, section } = definition;
  if (kind !== 'data' || symbol.binding !== c.STB_LOCAL) return false;
  const isReadOnly = (section.flags & c.SHF_WRITE) === 0 || section.name.startsWith('.data.rel.ro');
  return (
    isReadOnly &&
    referencesOf(model, definition).every(
      (r) =>
        r.kind === 'string' ||
        (r.kind === 'definition' && r.definition.kind === 'function' && r.offset !== 0),
    )
  );
}

function referencesOf(model: ObjectModel, { symbol, section }: Definition): readonly Reference[] {
  const relocations = inRange(model.relocationsOf(section), symbol.value, symbol.sizeBytes);
  return relocations.map((relocation) => model.referenceOf(section, relocation));
}

class Comparer {
  readonly #original: ObjectModel;
  readonly #patched: ObjectModel;
  readonly #counterpart: ReadonlyMap<Definition, Definition>;
  readonly #anonymous = new Map<string, boolean>();

  constructor(original: ObjectModel, patched: ObjectModel, counterpart: ReadonlyMap<Definition, Definition>) {
    this.#original = original;
    this.#patched = patched;
    this.#counterpart = counterpart;
  }

  sameDefinition(a: Definition, b: Definition): boolean {
    const size = a.symbol.sizeBytes;
    if (size !== b.symbol.sizeBytes || a.section.type !== b.section.type) return false;
    if ((a.section.flags & COMPARED_FLAGS) !== (b.section.flags & COMPARED_FLAGS)) return false;
    return (
      this.#sameRange(a.section, a.symbol.value, b.section, b.symbol.value, size) &&
      (a.kind !== 'function' || this.#sameSpecialEntries(a, b))
    );
  }

  /** What a kernel's tables say of both functions. */
  #sameSpecialEntries(a: Definition, b: Definition): boolean {
    const inside = (model: ObjectModel, { section, symbol }: Definition) =>
      model
        .specialEntriesOf(section)
        .filter((e) => e.position >= symbol.value && e.position < symbol.value + symbol.sizeBytes);
    const [before, after] = [inside(this.#original, a), inside(this.#patched, b)];
    if (before.length !== after.length) return false;
    return before.every((left, index) => {
      const right = after[index] as SpecialEntry;
      if (left.kind !== right.kind || left.position - a.symbol.value !== right.position - b.symbol.value)
        return false;
      const own = [left, right].map(({ bytes, relocations, table }) => {
        const copy = bytes.slice();
        const start = bytes.byteOffset - table.data.byteOffset;
        for (const r of relocations)
          copy.fill(0, r.offset - start, r.offset - start + relocatedBytes(r.type));
        return copy;
      });
      if (!sameBytes(own[0] as Uint8Array, own[1] as Uint8Array)) return false;
      if (left.kind === 'alternative') return this.#sameReplacement(left, right);
      return left.relocations.every((relocation, i) => {
        const other = right.relocations[i] as ElfRelocation;
        const [x, y] = [
          this.#original.referenceOf(left.table, relocation),
          this.#patched.referenceOf(right.table, other),
        ];
        return this.#sameReference(x, y);
      });
    });
  }

  #sameReplacement(left: SpecialEntry, right: SpecialEntry): boolean {
    const x = placeOf(this.#original.elf, left.relocations[1] as ElfRelocation);
    const y = placeOf(this.#patched.elf, right.relocations[1] as ElfRelocation);
    const { replacementBytes } = parseAlternative(left);
    return (
      x !== undefined &&
      y !== undefined &&
      this.#sameRange(x.section, x.position, y.section, y.position, replacementBytes)
    );
  }

  #sameRange(a: ElfSection, aStart: number, b: ElfSection, bStart: number, size: number): boolean {
    if (a.type === c.SHT_NOBITS) return true;
    const [aBytes, bBytes] = [a.data.slice(aStart, aStart + size), b.data.slice(bStart, bStart + size)];
    const aRelocations = inRange(this.#original.relocationsOf(a), aStart, size);
    const bRelocations = inRange(this.#patched.relocationsOf(b), bStart, size);
    if (aRelocations.length !== bRelocations.length) return false;
    for (let i = 0; i < aRelocations.length; i++) {
      const [ra, rb] = [aRelocations[i] as ElfRelocation, bRelocations[i] as ElfRelocation];
      const at = ra.offset - aStart;
      if (at !== rb.offset - bStart || ra.type !== rb.type) return false;
      if (!this.#sameReference(this.#original.referenceOf(a, ra), this.#patched.referenceOf(b, rb)))
        return false;
      aBytes.fill(0, at, at + relocatedBytes(ra.type));
      bBytes.fill(0, at, at + relocatedBytes(rb.type));
    }
    return sameBytes(aBytes, bBytes);
  }

  #sameReference(a: Reference, b: Reference): boolean {
    if (a.kind === 'definition' && b.kind === 'definition') {
      return a.offset === b.offset && this.#counterpart.get(b.definition) === a.definition;
    }
    if (a.kind === 'undefined' && b.kind === 'undefined') return a.name === b.name && a.offset === b.offset;
    if (a.kind === 'string' && b.kind === 'string') return sameBytes(a.bytes, b.bytes);
    if (a.kind === 'anonymous' && b.kind === 'anonymous') return this.#sameAnonymous(a, b);
    return false;
  }

  /** Constants and jump tables without a name: compared from where they are used to the end of what they are. */
  #sameAnonymous(a: Reference & { kind: 'anonymous' }, b: Reference & { kind: 'anonymous' }): boolean {
    const key = `${a.section.index} ${a.position} ${b.section.index} ${b.position}`;
    const known = this.#anonymous.get(key);
    if (known !== undefined) return known;
    // A jump table refers to the function that is being compared: assume the best until shown otherwise.
    this.#anonymous.set(key, true);
    const width = Math.max(a.section.entrySizeBytes, 0);
    let same: boolean;
    if ((a.section.flags & c.SHF_MERGE) !== 0 && width > 0) {
      same = sameBytes(
        a.section.data.subarray(a.position, a.position + width),
        b.section.data.subarray(b.position, b.position + width),
      );
    } else if (a.section.name === '.altinstr_aux') {
      // The slow path of a CPU test, up to that of the next one.
      const [aSize, bSize] = [pieceSize(this.#original, a), pieceSize(this.#patched, b)];
      same = aSize === bSize && this.#sameRange(a.section, a.position, b.section, b.position, aSize);
    } else if ((a.section.flags & c.SHF_EXECINSTR) !== 0) {
      same = stableName(a.section.name) === stableName(b.section.name) && a.position === b.position;
    } else {
      const size = a.section.sizeBytes - a.position;
      same =
        size === b.section.sizeBytes - b.position &&
        this.#sameRange(a.section, a.position, b.section, b.position, size);
    }
    this.#anonymous.set(key, same);
    return same;
  }
}

function pieceSize(model: ObjectModel, { section, position }: Reference & { kind: 'anonymous' }): number {
  const next = model.anonymousPositions(section).find((other) => other > position);
  return (next ?? section.sizeBytes) - position;
}

const COMPARED_FLAGS = c.SHF_WRITE | c.SHF_ALLOC | c.SHF_EXECINSTR | c.SHF_TLS;

export function inRange(relocations: readonly ElfRelocation[], start: number, size: number): ElfRelocation[] {
  return relocations.filter((r) => r.offset >= start && r.offset < start + size);
}

export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
