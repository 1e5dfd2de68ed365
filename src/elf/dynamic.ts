import { linkAddress } from '../base/brand.js';
import { ByteReader, decodeText } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';
import * as c from './constants.js';
import type { ElfFile, ElfRelocation, ElfSymbol } from './elf-file.js';
import { parseRelocations } from './relocations.js';
import { parseSymbols, SYMBOL_BYTES } from './symbols.js';

/** What the dynamic linker reads of a file, found through `PT_DYNAMIC` alone: section headers may be missing. */
export interface DynamicInfo {
  /** Most who ask for a name or a dependency never ask for these, which are long. */
  readonly readSymbols: () => readonly ElfSymbol[];
  readonly readRelocations: () => readonly ElfRelocation[];
  readonly needed: readonly string[];
  readonly soname: string | undefined;
}

const NOTHING: DynamicInfo = {
  readSymbols: () => [],
  readRelocations: () => [],
  needed: [],
  soname: undefined,
};

export function readDynamicInfo(elf: ElfFile): DynamicInfo {
  const segment = elf.segments.find((s) => s.type === c.PT_DYNAMIC);
  if (segment === undefined) return NOTHING;
  const entries = new Map<number, number>();
  const neededOffsets: number[] = [];
  const reader = new ByteReader(elf.bytes, elf.source).seek(Math.min(segment.offset, elf.bytes.length));
  const end = segment.offset + segment.fileSizeBytes;
  while (reader.offset + 16 <= end) {
    const tag = reader.readAddress();
    const value = reader.readAddress();
    if (tag === c.DT_NULL) break;
    if (tag === c.DT_NEEDED) neededOffsets.push(value);
    else entries.set(tag, value);
  }
  const strings = area(elf, entries.get(c.DT_STRTAB), entries.get(c.DT_STRSZ), 'DT_STRTAB');
  const text = (offset: number): string => {
    const stop = strings.indexOf(0, offset);
    if (offset < 0 || stop < 0)
      throw new ParseError(elf.source, segment.offset, `string ${offset} is not in DT_STRTAB`);
    return decodeText(strings.subarray(offset, stop));
  };
  const soname = entries.get(c.DT_SONAME);
  return {
    readSymbols: () => {
      const count = countSymbols(elf, entries);
      const symbolTable = area(elf, entries.get(c.DT_SYMTAB), count * SYMBOL_BYTES, 'DT_SYMTAB');
      const versym = entries.get(c.DT_VERSYM);
      const versions =
        versym === undefined
          ? undefined
          : {
              indexes: area(elf, versym, count * 2, 'DT_VERSYM'),
              names: readVersionNames(elf, entries, text),
            };
      return parseSymbols(symbolTable, strings, elf.source, { versions });
    },
    readRelocations: () => [
      ...parseRelocations(area(elf, entries.get(c.DT_RELA), entries.get(c.DT_RELASZ), 'DT_RELA')),
      ...parseRelocations(area(elf, entries.get(c.DT_JMPREL), entries.get(c.DT_PLTRELSZ), 'DT_JMPREL')),
    ],
    needed: neededOffsets.map(text),
    soname: soname === undefined ? undefined : text(soname),
  };
}

function area(
  elf: ElfFile,
  address: number | undefined,
  sizeBytes: number | undefined,
  what: string,
): Uint8Array {
  if (address === undefined || sizeBytes === undefined || sizeBytes <= 0) return new Uint8Array();
  const bytes = elf.bytesAt(linkAddress(address), sizeBytes);
  if (bytes === undefined || bytes.length < sizeBytes) {
    throw new ParseError(elf.source, 0, `${what} points outside of the loaded file`);
  }
  return bytes;
}

/** The dynamic symbol table states no size of its own; a hash table over it does (gABI "Hash Table"; binutils' DT_GNU_HASH). */
function countSymbols(elf: ElfFile, entries: ReadonlyMap<number, number>): number {
  const section = elf.sections.find((s) => s.type === c.SHT_DYNSYM);
  if (section !== undefined) return Math.floor(section.sizeBytes / SYMBOL_BYTES);
  const hash = entries.get(c.DT_HASH);
  if (hash !== undefined) {
    const header = new ByteReader(area(elf, hash, 8, 'DT_HASH'), elf.source);
    header.skip(4);
    return header.readU32();
  }
  const gnuHash = entries.get(c.DT_GNU_HASH);
  return gnuHash === undefined ? 0 : countByGnuHash(elf, gnuHash);
}

function countByGnuHash(elf: ElfFile, address: number): number {
  const header = new ByteReader(area(elf, address, 16, 'DT_GNU_HASH'), elf.source);
  const bucketCount = header.readU32();
  const firstSymbol = header.readU32();
  const bloomWords = header.readU32();
  const buckets = address + 16 + bloomWords * 8;
  const bucketReader = new ByteReader(area(elf, buckets, bucketCount * 4, 'DT_GNU_HASH'), elf.source);
  let last = firstSymbol - 1;
  for (let i = 0; i < bucketCount; i++) last = Math.max(last, bucketReader.readU32());
  if (last < firstSymbol) return firstSymbol;
  // The chain of the last bucket ends at an entry with its lowest bit set.
  const chain = buckets + bucketCount * 4 + (last - firstSymbol) * 4;
  for (let i = 0; ; i++) {
    const entry = new ByteReader(area(elf, chain + i * 4, 4, 'DT_GNU_HASH'), elf.source).readU32();
    if ((entry & 1) === 1) return last + i + 1;
  }
}

/** Version index to name, from the definitions and the requirements (LSB 5.0, "Symbol Versioning"). */
function readVersionNames(
  elf: ElfFile,
  entries: ReadonlyMap<number, number>,
  text: (offset: number) => string,
): ReadonlyMap<number, string> {
  const names = new Map<number, string>();
  let definition = entries.get(c.DT_VERDEF);
  for (let i = 0; definition !== undefined && i < (entries.get(c.DT_VERDEFNUM) ?? 0); i++) {
    const reader = new ByteReader(area(elf, definition, 20, 'DT_VERDEF'), elf.source);
    reader.skip(4);
    const index = reader.readU16();
    reader.skip(6);
    const auxiliary = definition + reader.readU32();
    const next = reader.readU32();
    names.set(index, text(new ByteReader(area(elf, auxiliary, 8, 'DT_VERDEF'), elf.source).readU32()));
    definition = next === 0 ? undefined : definition + next;
  }
  let requirement = entries.get(c.DT_VERNEED);
  for (let i = 0; requirement !== undefined && i < (entries.get(c.DT_VERNEEDNUM) ?? 0); i++) {
    const reader = new ByteReader(area(elf, requirement, 16, 'DT_VERNEED'), elf.source);
    reader.skip(2);
    const count = reader.readU16();
    reader.skip(4);
    let auxiliary = requirement + reader.readU32();
    const next = reader.readU32();
    for (let j = 0; j < count; j++) {
      const entry = new ByteReader(area(elf, auxiliary, 16, 'DT_VERNEED'), elf.source);
      entry.skip(6);
      const index = entry.readU16();
      names.set(index, text(entry.readU32()));
      const step = entry.readU32();
      if (step === 0) break;
      auxiliary += step;
    }
    requirement = next === 0 ? undefined : requirement + next;
  }
  return names;
}
