import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfRelocation, ElfSection } from '../elf/elf-file.js';

/** Tables that a kernel works on when it starts or loads a module: each entry names an instruction. */
export type SpecialKind = 'alternative' | 'jumpLabel' | 'bug' | 'exception';

export interface SpecialEntry {
  readonly kind: SpecialKind;
  /** The table, and the entry's place in it. */
  readonly table: ElfSection;
  readonly bytes: Uint8Array;
  /** Those of the entry, offsets in the table. The first one says which instruction is meant. */
  readonly relocations: readonly ElfRelocation[];
  /** Where the instruction lies. */
  readonly code: ElfSection;
  readonly position: number;
}

const TABLES: ReadonlyMap<string, SpecialKind> = new Map([
  ['.altinstructions', 'alternative'],
  ['__jump_table', 'jumpLabel'],
  ['__bug_table', 'bug'],
  ['__ex_table', 'exception'],
]);

/** Relocations of one entry: instruction and replacement; code, target and key; code and file; instruction and fixup. */
const RELOCATIONS: Readonly<Record<SpecialKind, number>> = {
  alternative: 2,
  jumpLabel: 3,
  bug: 2,
  exception: 2,
};

/** The entries of an object's tables. Sizes differ between kernels: an entry reaches from its first relocation to the next entry's. */
export function readSpecialEntries(elf: ElfFile): readonly SpecialEntry[] {
  return elf.sections.flatMap((table) => {
    const kind = TABLES.get(table.name);
    return kind === undefined || table.sizeBytes === 0 ? [] : readTable(elf, table, kind);
  });
}

function readTable(elf: ElfFile, table: ElfSection, kind: SpecialKind): SpecialEntry[] {
  const relocations = [...elf.relocationsFor(table)].sort((a, b) => a.offset - b.offset);
  // Up to 5.15 a handler is the third word of an entry of the exception table.
  const isOld = kind === 'exception' && relocations.length * 4 === table.sizeBytes;
  const each = isOld ? 3 : RELOCATIONS[kind];
  const count = relocations.length / each;
  const sizeBytes = table.sizeBytes / count;
  const entries: SpecialEntry[] = [];
  for (let i = 0; i < count; i++) {
    const own = relocations.slice(i * each, (i + 1) * each);
    const [first] = own;
    const symbol = elf.symbols[first?.symbolIndex ?? 0];
    const code = elf.sections[symbol?.sectionIndex ?? 0];
    const isWhole = Number.isInteger(sizeBytes) && own.every((r) => Math.floor(r.offset / sizeBytes) === i);
    if (first === undefined || symbol === undefined || code === undefined || !isWhole) {
      throw new LivegraftError(
        'object-malformed',
        `${elf.source}: ${table.name} has entries of an unknown form`,
        {
          remedy:
            'livegraft does not know this version of the table: please report the kernel and its compiler',
        },
      );
    }
    entries.push({
      kind,
      table,
      bytes: table.data.subarray(i * sizeBytes, (i + 1) * sizeBytes),
      relocations: own,
      code,
      position: symbol.value + first.addend,
    });
  }
  return entries;
}

/** An entry of `.altinstructions`, whatever its version (arch/x86/include/asm/alternative.h). */
export interface Alternative {
  readonly feature: number;
  /** Applied where the CPU lacks the feature. */
  readonly isInverse: boolean;
  readonly lengthBytes: number;
  readonly replacementBytes: number;
}

export function parseAlternative({ bytes, table }: SpecialEntry): Alternative {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const feature = view.getUint16(8, true);
  const isInverse = (feature & 0x8000) !== 0;
  // Up to 5.17 there was a third length; from 6.3 flags stand between (bit 0: inverse, others change how it is applied).
  if (bytes.length === 12 || bytes.length === 13)
    return {
      feature: feature & 0x7fff,
      isInverse,
      lengthBytes: view.getUint8(10),
      replacementBytes: view.getUint8(11),
    };
  const flags = bytes.length === 14 ? view.getUint16(10, true) : 2;
  if (flags > 1) {
    throw new LivegraftError('special-section', `${table.name} has entries of a form that is not known`, {
      remedy: 'write the function without alternatives',
    });
  }
  return {
    feature,
    isInverse: flags === 1,
    lengthBytes: view.getUint8(12),
    replacementBytes: view.getUint8(13),
  };
}

/** Where a relocation of a table leads, in the object. */
export function placeOf(elf: ElfFile, relocation: ElfRelocation) {
  const symbol = elf.symbols[relocation.symbolIndex];
  const section = elf.sections[symbol?.sectionIndex ?? 0];
  const isDefined = symbol !== undefined && symbol.sectionIndex !== c.SHN_UNDEF;
  return section === undefined || !isDefined
    ? undefined
    : { section, position: symbol.value + relocation.addend };
}
