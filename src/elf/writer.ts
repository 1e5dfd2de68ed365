import { ByteWriter } from '../base/byte-writer.js';
import * as c from './constants.js';
import type { ElfRelocation } from './elf-file.js';

/** A section to be written. `data` is the contents; `SHT_NOBITS` sections give `sizeBytes` instead. */
export interface SectionToWrite {
  readonly name: string;
  readonly type: number;
  readonly flags: number;
  readonly data: Uint8Array;
  readonly sizeBytes?: number;
  readonly alignment: number;
}

/** A symbol to be written; `section` indexes the sections given, or is a reserved index such as `SHN_LIVEPATCH`. */
export interface SymbolToWrite {
  readonly name: string;
  readonly section: number | { readonly reserved: number };
  readonly value: number;
  readonly sizeBytes: number;
  readonly type: number;
  readonly binding: number;
}

/** Relocations of one section; `symbolIndex` indexes the symbols given. */
export interface RelocationsToWrite {
  readonly name: string;
  readonly section: number;
  readonly flags: number;
  readonly relocations: readonly ElfRelocation[];
}

export interface RelocatableToWrite {
  readonly machine: number;
  readonly sections: readonly SectionToWrite[];
  readonly symbols: readonly SymbolToWrite[];
  readonly relocations: readonly RelocationsToWrite[];
}

const HEADER_BYTES = 64;
const SECTION_HEADER_BYTES = 64;

/**
 * Writes a relocatable object (`ET_REL`, gABI 4.1): the sections in the order given (header indexes 1, 2, …), then
 * relocations, symbol table and string tables. Local symbols are moved to the front, as the format demands.
 */
export function writeRelocatable(object: RelocatableToWrite): Uint8Array {
  const strings = new StringTable();
  const order = symbolOrder(object.symbols);
  const newIndex = new Map(order.map((original, position) => [original, position + 1]));
  const symtabIndex = object.sections.length + object.relocations.length + 1;

  const headers: SectionHeader[] = object.sections.map((section) => ({
    ...section,
    sizeBytes: section.sizeBytes ?? section.data.length,
    link: 0,
    info: 0,
    entrySize: 0,
  }));
  for (const table of object.relocations) {
    headers.push({
      name: table.name,
      type: c.SHT_RELA,
      flags: table.flags | c.SHF_INFO_LINK,
      data: encodeRelocations(table.relocations, newIndex),
      sizeBytes: table.relocations.length * 24,
      alignment: 8,
      link: symtabIndex,
      info: table.section + 1,
      entrySize: 24,
    });
  }
  const symbols = encodeSymbols(object.symbols, order, strings);
  const locals = object.symbols.filter((s) => s.binding === c.STB_LOCAL).length;
  headers.push(
    table('.symtab', c.SHT_SYMTAB, symbols, {
      link: symtabIndex + 1,
      info: locals + 1,
      entrySize: 24,
      alignment: 8,
    }),
  );
  headers.push(table('.strtab', c.SHT_STRTAB, strings.toBytes(), {}));
  const names = new StringTable();
  for (const header of headers) names.add(header.name);
  names.add('.shstrtab');
  headers.push(table('.shstrtab', c.SHT_STRTAB, names.toBytes(), {}));

  const body = new ByteWriter(4096);
  const offsets: number[] = [];
  for (const header of headers) {
    while ((HEADER_BYTES + body.length) % Math.max(1, header.alignment) !== 0) body.writeU8(0);
    offsets.push(HEADER_BYTES + body.length);
    body.writeBytes(header.data);
  }
  body.align(8);
  const out = new ByteWriter(HEADER_BYTES + body.length + (headers.length + 1) * SECTION_HEADER_BYTES);
  out.writeBytes(
    Uint8Array.of(
      0x7f,
      0x45,
      0x4c,
      0x46,
      c.ELFCLASS64,
      c.ELFDATA2LSB,
      c.EV_CURRENT,
      0,
      0,
      0,
      0,
      0,
      0,
      0,
      0,
      0,
    ),
  );
  out.writeU16(c.ET_REL).writeU16(object.machine).writeU32(c.EV_CURRENT);
  out
    .writeU64(0)
    .writeU64(0)
    .writeU64(HEADER_BYTES + body.length);
  out.writeU32(0).writeU16(HEADER_BYTES).writeU16(0).writeU16(0);
  out
    .writeU16(SECTION_HEADER_BYTES)
    .writeU16(expectIndex(headers.length + 1))
    .writeU16(headers.length);
  out.writeBytes(body.toBytes());
  out.writeBytes(new Uint8Array(SECTION_HEADER_BYTES));
  headers.forEach((header, i) => {
    out.writeU32(names.add(header.name)).writeU32(header.type).writeU64(header.flags).writeU64(0);
    out
      .writeU64(offsets[i] as number)
      .writeU64(header.sizeBytes)
      .writeU32(header.link)
      .writeU32(header.info);
    out.writeU64(header.alignment).writeU64(header.entrySize);
  });
  return out.toBytes();
}

interface SectionHeader extends SectionToWrite {
  readonly sizeBytes: number;
  readonly link: number;
  readonly info: number;
  readonly entrySize: number;
}

function table(
  name: string,
  type: number,
  data: Uint8Array,
  more: { link?: number; info?: number; entrySize?: number; alignment?: number },
): SectionHeader {
  return {
    name,
    type,
    flags: 0,
    data,
    sizeBytes: data.length,
    link: 0,
    info: 0,
    entrySize: 0,
    alignment: 1,
    ...more,
  };
}

function expectIndex(count: number): number {
  if (count >= c.SHN_LORESERVE)
    throw new RangeError(`${count} sections need extended numbering, which is not written`);
  return count;
}

function symbolOrder(symbols: readonly SymbolToWrite[]): number[] {
  const indexes = symbols.map((_, i) => i);
  const isLocal = (i: number) => symbols[i]?.binding === c.STB_LOCAL;
  return [...indexes.filter(isLocal), ...indexes.filter((i) => !isLocal(i))];
}

function encodeSymbols(
  symbols: readonly SymbolToWrite[],
  order: readonly number[],
  strings: StringTable,
): Uint8Array {
  const out = new ByteWriter((symbols.length + 1) * 24);
  out.writeBytes(new Uint8Array(24));
  for (const index of order) {
    const symbol = symbols[index] as SymbolToWrite;
    const section = typeof symbol.section === 'number' ? symbol.section + 1 : symbol.section.reserved;
    out
      .writeU32(strings.add(symbol.name))
      .writeU8((symbol.binding << 4) | symbol.type)
      .writeU8(0)
      .writeU16(section);
    out.writeU64(symbol.value).writeU64(symbol.sizeBytes);
  }
  return out.toBytes();
}

function encodeRelocations(
  relocations: readonly ElfRelocation[],
  newIndex: ReadonlyMap<number, number>,
): Uint8Array {
  const out = new ByteWriter(relocations.length * 24);
  for (const { offset, type, symbolIndex, addend } of relocations) {
    const index = newIndex.get(symbolIndex);
    if (index === undefined)
      throw new RangeError(`relocation names symbol ${symbolIndex}, which is not written`);
    out.writeU64(offset).writeU32(type).writeU32(index).writeU64(addend);
  }
  return out.toBytes();
}

class StringTable {
  readonly #out = new ByteWriter();
  readonly #offsets = new Map<string, number>([['', 0]]);

  constructor() {
    this.#out.writeU8(0);
  }

  add(text: string): number {
    let offset = this.#offsets.get(text);
    if (offset === undefined) {
      offset = this.#out.length;
      this.#out.writeCString(text);
      this.#offsets.set(text, offset);
    }
    return offset;
  }

  toBytes(): Uint8Array {
    return this.#out.toBytes();
  }
}
