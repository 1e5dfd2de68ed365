import { type FileOffset, fileOffset, type LinkAddress, linkAddress } from '../base/brand.js';
import { ByteReader, decodeText } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';
import * as c from './constants.js';
import { type DynamicInfo, readDynamicInfo } from './dynamic.js';
import type { ElfFile, ElfNote, ElfRelocation, ElfSection, ElfSegment, ElfSymbol } from './elf-file.js';
import { parseNotes } from './notes.js';
import { parseRelocations } from './relocations.js';
import { parseSymbols } from './symbols.js';

type Decompress = (bytes: Uint8Array, sizeBytes: number) => Uint8Array;

export interface ElfReaderOptions {
  /**
   * Decompresses zlib data of a `SHF_COMPRESSED` section to at most `sizeBytes`, which the section's header promises; throws
   * when it is more, or damaged. Without it, such sections are refused by name when their contents are asked for.
   */
  readonly inflate?: Decompress;
  /** The same for zstd. */
  readonly zstd?: Decompress;
  /** The bytes were read from memory (the vDSO): section headers may be missing, which then is no error. */
  readonly image?: boolean;
}

/** Names, and how many times its size data of a format can unpack to: RFC 1950 and 8878 (128 KiB from a block of 4 bytes). */
const COMPRESSIONS: ReadonlyMap<number, { readonly name: string; readonly ratio: number }> = new Map([
  [c.ELFCOMPRESS_ZLIB, { name: 'zlib', ratio: 1032 }],
  [c.ELFCOMPRESS_ZSTD, { name: 'zstd', ratio: 32_768 }],
]);
const HEADER_BYTES = 64;
const SECTION_HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
/** No section of a real file inflates beyond this; a bomb does. */
const MAX_INFLATED_BYTES = 2 ** 31;

/**
 * Parses a 64-bit little-endian ELF file (gABI 4.1; x86-64 psABI). Headers are read at once, tables when asked for.
 * Throws {@link ParseError}, whatever the bytes.
 */
export function parseElf(bytes: Uint8Array, source: string, options: ElfReaderOptions = {}): ElfFile {
  return new ParsedElf(bytes, source, options);
}

class ParsedElf implements ElfFile {
  readonly source: string;
  readonly bytes: Uint8Array;
  readonly type: number;
  readonly machine: number;
  readonly entry: LinkAddress;
  readonly sections: readonly ElfSection[];
  readonly segments: readonly ElfSegment[];
  readonly #options: ElfReaderOptions;
  #sectionsByName: ReadonlyMap<string, ElfSection> | undefined;
  #symbols: readonly ElfSymbol[] | undefined;
  #dynamic: DynamicInfo | undefined;
  #dynamicSymbols: readonly ElfSymbol[] | undefined;
  #dynamicRelocations: readonly ElfRelocation[] | undefined;
  #notes: readonly ElfNote[] | undefined;
  readonly #relocations = new Map<ElfSection, readonly ElfRelocation[]>();

  constructor(bytes: Uint8Array, source: string, options: ElfReaderOptions) {
    // A plain view: slices of Node's Buffer share memory, where everyone expects copies.
    this.bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.length);
    this.source = source;
    this.#options = options;
    const reader = new ByteReader(this.bytes, source);
    expectIdentification(reader);
    reader.seek(16);
    this.type = reader.readU16();
    this.machine = reader.readU16();
    reader.skip(4);
    this.entry = linkAddress(reader.readAddress());
    const programHeaders = reader.readSize();
    const sectionHeaders = reader.readSize();
    reader.skip(6);
    const programHeaderBytes = reader.readU16();
    let programHeaderCount = reader.readU16();
    const sectionHeaderBytes = reader.readU16();
    let sectionCount = reader.readU16();
    let namesIndex = reader.readU16();

    let headers: RawSection[] = [];
    if (sectionHeaders !== 0 && !(options.image === true && sectionHeaders >= bytes.length)) {
      if (sectionHeaderBytes !== SECTION_HEADER_BYTES)
        reader.fail(`section header size ${sectionHeaderBytes}`);
      if (sectionHeaders > bytes.length)
        reader.fail(`cut off at ${bytes.length} bytes: its section headers begin at ${sectionHeaders}`);
      // gABI "Section header": counts that don't fit the file header are kept in the first section header.
      const first = readSectionHeader(reader.seek(sectionHeaders));
      if (sectionCount === 0) sectionCount = first.size;
      if (namesIndex === c.SHN_XINDEX) namesIndex = first.link;
      if (programHeaderCount === c.PN_XNUM) programHeaderCount = first.info;
      const room = Math.floor((bytes.length - sectionHeaders) / SECTION_HEADER_BYTES);
      if (sectionCount > room) {
        if (options.image === true) sectionCount = 0;
        else reader.fail(`${sectionCount} section headers, room for ${room}`);
      }
      reader.seek(sectionHeaders);
      headers = Array.from({ length: sectionCount }, () => readSectionHeader(reader));
    }
    this.sections = this.#nameSections(headers, namesIndex);

    const segments: ElfSegment[] = [];
    if (programHeaders !== 0 && programHeaderCount > 0) {
      if (programHeaderBytes !== PROGRAM_HEADER_BYTES)
        reader.fail(`program header size ${programHeaderBytes}`);
      reader.seek(programHeaders);
      for (let i = 0; i < programHeaderCount; i++) segments.push(readProgramHeader(reader));
    }
    this.segments = segments;
  }

  get symbols(): readonly ElfSymbol[] {
    if (this.#symbols === undefined) {
      const table = this.sections.find((s) => s.type === c.SHT_SYMTAB);
      const strings = table === undefined ? undefined : this.sections[table.link];
      const extended = this.sections.find((s) => s.type === c.SHT_SYMTAB_SHNDX && s.link === table?.index);
      this.#symbols =
        table === undefined || strings === undefined
          ? []
          : parseSymbols(table.data, strings.data, this.source, { extendedIndexes: extended?.data });
    }
    return this.#symbols;
  }

  get #dynamicInfo(): DynamicInfo {
    this.#dynamic ??= readDynamicInfo(this);
    return this.#dynamic;
  }

  get dynamicSymbols(): readonly ElfSymbol[] {
    this.#dynamicSymbols ??= this.#dynamicInfo.readSymbols();
    return this.#dynamicSymbols;
  }

  get needed(): readonly string[] {
    return this.#dynamicInfo.needed;
  }

  get soname(): string | undefined {
    return this.#dynamicInfo.soname;
  }

  get dynamicRelocations(): readonly ElfRelocation[] {
    this.#dynamicRelocations ??= this.#dynamicInfo.readRelocations();
    return this.#dynamicRelocations;
  }

  get notes(): readonly ElfNote[] {
    if (this.#notes === undefined) {
      const segments = this.segments.filter((s) => s.type === c.PT_NOTE);
      const areas =
        segments.length > 0
          ? segments.map((s) => ({ bytes: this.#slice(s.offset, s.fileSizeBytes), alignment: s.alignment }))
          : this.sections
              .filter((s) => s.type === c.SHT_NOTE)
              .map((s) => ({ bytes: s.data, alignment: s.alignment }));
      this.#notes = areas.flatMap((area) => parseNotes(area.bytes, area.alignment, this.source));
    }
    return this.#notes;
  }

  get buildId(): string | undefined {
    const note = this.notes.find((n) => n.name === 'GNU' && n.type === c.NT_GNU_BUILD_ID);
    if (note === undefined || note.description.length === 0) return undefined;
    return Array.from(note.description, (byte) => byte.toString(16).padStart(2, '0')).join('');
  }

  findSection(name: string): ElfSection | undefined {
    if (this.#sectionsByName === undefined) {
      const byName = new Map<string, ElfSection>();
      for (const section of this.sections) if (!byName.has(section.name)) byName.set(section.name, section);
      this.#sectionsByName = byName;
    }
    return this.#sectionsByName.get(name);
  }

  relocations(section: ElfSection): readonly ElfRelocation[] {
    const known = this.#relocations.get(section);
    if (known !== undefined) return known;
    const parsed = parseRelocations(section.data);
    this.#relocations.set(section, parsed);
    return parsed;
  }

  relocationsFor(section: ElfSection): readonly ElfRelocation[] {
    const tables = this.sections.filter((s) => s.type === c.SHT_RELA && s.info === section.index);
    const [only] = tables;
    return tables.length === 1 && only !== undefined
      ? this.relocations(only)
      : tables.flatMap((table) => this.relocations(table));
  }

  bytesAt(address: LinkAddress, sizeBytes: number): Uint8Array | undefined {
    for (const segment of this.segments) {
      if (segment.type !== c.PT_LOAD) continue;
      const start = address - segment.address;
      if (start < 0 || start >= segment.fileSizeBytes) continue;
      const size = Math.min(sizeBytes, segment.fileSizeBytes - start);
      return this.#slice(fileOffset(segment.offset + start), size);
    }
    return undefined;
  }

  #slice(offset: FileOffset, sizeBytes: number): Uint8Array {
    if (offset > this.bytes.length || sizeBytes > this.bytes.length - offset) {
      throw new ParseError(this.source, offset, `${sizeBytes} bytes are beyond the end of the file`);
    }
    return this.bytes.subarray(offset, offset + sizeBytes);
  }

  #nameSections(headers: readonly RawSection[], namesIndex: number): ElfSection[] {
    const names = headers[namesIndex];
    const table =
      names === undefined || names.type === c.SHT_NOBITS
        ? new Uint8Array()
        : this.#slice(names.offset, names.size);
    return headers.map((raw, index) => {
      const end = table.indexOf(0, raw.nameOffset);
      if (raw.nameOffset > 0 && end < 0) {
        throw new ParseError(this.source, raw.nameOffset, `section ${index} has no valid name`);
      }
      const name = raw.nameOffset > 0 ? decodeText(table.subarray(raw.nameOffset, end)) : '';
      return new ParsedSection(index, name, raw, () => this.#sectionData(raw, name));
    });
  }

  #sectionData(raw: RawSection, name: string): Uint8Array {
    if (raw.type === c.SHT_NOBITS || raw.type === c.SHT_NULL) return new Uint8Array();
    const stored = this.#slice(raw.offset, raw.size);
    if ((raw.flags & c.SHF_COMPRESSED) === 0) return stored;
    const reader = new ByteReader(stored, `${this.source}(${name})`, raw.offset);
    const kind = reader.readU32();
    reader.skip(4);
    const sizeBytes = reader.readSize();
    reader.skip(8);
    const { inflate, zstd } = this.#options;
    const decompress = kind === c.ELFCOMPRESS_ZLIB ? inflate : kind === c.ELFCOMPRESS_ZSTD ? zstd : undefined;
    const format = COMPRESSIONS.get(kind);
    if (decompress === undefined || format === undefined) {
      const name = format?.name ?? `an unknown method (${kind})`;
      return reader.fail(`a section compressed with ${name} can't be read here`);
    }
    if (sizeBytes > Math.min(MAX_INFLATED_BYTES, stored.length * format.ratio))
      reader.fail(`absurd uncompressed size ${sizeBytes}`);
    let data: Uint8Array;
    try {
      data = decompress(stored.subarray(reader.offset), sizeBytes);
    } catch {
      return reader.fail('compressed data is damaged');
    }
    if (data.length !== sizeBytes) reader.fail(`inflates to ${data.length} bytes instead of ${sizeBytes}`);
    return data;
  }
}

class ParsedSection implements ElfSection {
  readonly index: number;
  readonly name: string;
  readonly type: number;
  readonly flags: number;
  readonly address: LinkAddress;
  readonly offset: FileOffset;
  readonly sizeBytes: number;
  readonly link: number;
  readonly info: number;
  readonly alignment: number;
  readonly entrySizeBytes: number;
  readonly #load: () => Uint8Array;
  #data: Uint8Array | undefined;

  constructor(index: number, name: string, raw: RawSection, load: () => Uint8Array) {
    this.index = index;
    this.name = name;
    this.type = raw.type;
    this.flags = raw.flags;
    this.address = raw.address;
    this.offset = raw.offset;
    this.sizeBytes = raw.size;
    this.link = raw.link;
    this.info = raw.info;
    this.alignment = raw.alignment;
    this.entrySizeBytes = raw.entrySize;
    this.#load = load;
  }

  get data(): Uint8Array {
    this.#data ??= this.#load();
    return this.#data;
  }
}

interface RawSection {
  readonly nameOffset: number;
  readonly type: number;
  readonly flags: number;
  readonly address: LinkAddress;
  readonly offset: FileOffset;
  readonly size: number;
  readonly link: number;
  readonly info: number;
  readonly alignment: number;
  readonly entrySize: number;
}

/** How archives begin, and those that only name their members (System V ABI, chapter 7; GNU ar). */
const ARCHIVES = /^!<(arch|thin)>\n/;

function expectIdentification(reader: ByteReader): void {
  const bytes = reader.bytes;
  if (ARCHIVES.test(String.fromCharCode(...bytes.subarray(0, 8)))) {
    throw new ParseError(reader.source, 0, 'an archive of objects, no ELF file', {
      remedy: 'give its members: ar t lists them, ar x writes them',
    });
  }
  if (bytes.length < HEADER_BYTES) reader.fail(`${bytes.length} bytes are too few for an ELF header`);
  if (bytes[0] !== 0x7f || bytes[1] !== 0x45 || bytes[2] !== 0x4c || bytes[3] !== 0x46) {
    reader.fail('no ELF file (its first bytes are not 7f 45 4c 46)');
  }
  if (bytes[4] !== c.ELFCLASS64) {
    reader.fail(
      bytes[4] === c.ELFCLASS32 ? 'a 32-bit ELF file; only 64-bit ones are supported' : 'unknown ELF class',
    );
  }
  if (bytes[5] !== c.ELFDATA2LSB) {
    reader.fail(
      bytes[5] === c.ELFDATA2MSB
        ? 'a big-endian ELF file; only little-endian ones are supported'
        : 'unknown byte order',
    );
  }
}

function readSectionHeader(reader: ByteReader): RawSection {
  return {
    nameOffset: reader.readU32(),
    type: reader.readU32(),
    // Every flag that is defined lies in the low 32 bits.
    flags: Number(reader.readU64() & 0xffffffffn),
    address: linkAddress(reader.readAddress()),
    offset: fileOffset(reader.readSize()),
    size: reader.readSize(),
    link: reader.readU32(),
    info: reader.readU32(),
    alignment: reader.readSize(),
    entrySize: reader.readSize(),
  };
}

function readProgramHeader(reader: ByteReader): ElfSegment {
  const type = reader.readU32();
  const flags = reader.readU32();
  const offset = fileOffset(reader.readSize());
  const address = linkAddress(reader.readAddress());
  reader.skip(8);
  return {
    type,
    flags,
    offset,
    address,
    fileSizeBytes: reader.readSize(),
    memorySizeBytes: reader.readSize(),
    alignment: reader.readSize(),
  };
}
