import type { ByteReader } from '../base/byte-reader.js';
import { decodeText } from '../base/byte-reader.js';

/** The header of one unit of `.debug_line` (DWARF 5 section 6.2.4; versions 2 to 4 in theirs). */
export interface LineHeader {
  readonly version: number;
  readonly minimumInstructionBytes: number;
  readonly maximumOperations: number;
  readonly defaultIsStatement: boolean;
  readonly lineBase: number;
  readonly lineRange: number;
  readonly opcodeBase: number;
  /** Of the standard opcodes from 1 on: how many operands. */
  readonly operandCounts: Uint8Array;
  /** Offsets in the section. */
  readonly programAt: number;
  readonly end: number;
  /** By the number that `DW_LNS_set_file` uses; `?` for one that the header does not list. */
  fileName(file: number): string;
}

interface Strings {
  readonly lineStrings?: Uint8Array | undefined;
  readonly strings?: Uint8Array | undefined;
}

/** Columns of the directory and file tables of version 5 (section 6.2.4.1, 7.22). */
const DW_LNCT_path = 1;
const DW_LNCT_directory_index = 2;

/** `reader` stands behind the unit's length. Throws a ParseError for a header that can't be used. */
export function readLineHeader(reader: ByteReader, end: number, is64: boolean, strings: Strings): LineHeader {
  const version = reader.readU16();
  if (version < 2 || version > 5) reader.fail(`line table version ${version}`);
  if (version >= 5) {
    const addressBytes = reader.readU8();
    const segmentBytes = reader.readU8();
    if (addressBytes !== 8 || segmentBytes !== 0)
      reader.fail(`address size ${addressBytes}, segment size ${segmentBytes}`);
  }
  const headerBytes = is64 ? reader.readSize() : reader.readU32();
  const programAt = reader.offset + headerBytes;
  if (programAt > end) reader.fail(`a header of ${headerBytes} bytes is longer than its unit`);
  const minimumInstructionBytes = reader.readU8();
  const maximumOperations = version >= 4 ? reader.readU8() : 1;
  if (maximumOperations === 0) reader.fail('an instruction of no operation');
  const defaultIsStatement = reader.readU8() !== 0;
  const lineBase = reader.readI8();
  const lineRange = reader.readU8();
  const opcodeBase = reader.readU8();
  if (lineRange === 0 || opcodeBase === 0) reader.fail(`line range ${lineRange}, opcode base ${opcodeBase}`);
  const operandCounts = reader.readBytes(opcodeBase - 1);
  const names = new FileNames(version >= 5 ? readEntryTables(reader, is64, strings) : readNameLists(reader));
  if (reader.offset > programAt) reader.fail('its tables are longer than the header');
  return {
    version,
    minimumInstructionBytes,
    maximumOperations,
    defaultIsStatement,
    lineBase,
    lineRange,
    opcodeBase,
    operandCounts,
    programAt,
    end,
    fileName: (file) => names.at(version >= 5 ? file : file - 1),
  };
}

interface FileEntry {
  /** Decoded when asked for: many entries of a damaged table may name one long string. */
  readonly name: () => string;
  readonly folder: number;
}

interface NameTables {
  /** Folder 0 is that of the compilation; versions before 5 don't name it. */
  readonly folders: readonly (() => string)[];
  readonly files: readonly FileEntry[];
}

class FileNames {
  readonly #tables: NameTables;
  readonly #joined = new Map<number, string>();

  constructor(tables: NameTables) {
    this.#tables = tables;
  }

  at(index: number): string {
    let name = this.#joined.get(index);
    if (name === undefined) {
      name = this.#join(index);
      this.#joined.set(index, name);
    }
    return name;
  }

  #join(index: number): string {
    const { folders, files } = this.#tables;
    const file = files[index];
    if (file === undefined) return '?';
    const name = file.name();
    if (name.startsWith('/')) return name;
    const own = folders[file.folder]?.() ?? '';
    const folder =
      own === '' || own.startsWith('/') || file.folder === 0 ? own : join(folders[0]?.() ?? '', own);
    return join(folder, name);
  }
}

function join(folder: string, name: string): string {
  return folder === '' ? name : `${folder.replace(/\/$/, '')}/${name}`;
}

/** Versions 2 to 4: folders, then files, each list ended by an empty name. */
function readNameLists(reader: ByteReader): NameTables {
  const folders = [() => ''];
  for (let name = reader.readCString(); name !== ''; name = reader.readCString()) {
    const folder = name;
    folders.push(() => folder);
  }
  const files: FileEntry[] = [];
  for (let name = reader.readCString(); name !== ''; name = reader.readCString()) {
    const file = name;
    files.push({ name: () => file, folder: reader.readUleb128() });
    reader.readUleb128(); // time of the last change
    reader.readUleb128(); // length
  }
  return { folders, files };
}

function readEntryTables(reader: ByteReader, is64: boolean, strings: Strings): NameTables {
  const folders = readEntries(reader, is64, strings).map(({ name }) => name);
  return { folders, files: readEntries(reader, is64, strings) };
}

function readEntries(reader: ByteReader, is64: boolean, strings: Strings): FileEntry[] {
  const columns = Array.from({ length: reader.readU8() }, () => ({
    content: reader.readUleb128(),
    form: reader.readUleb128(),
  }));
  const count = reader.readUleb128();
  // Entries without columns take no bytes: nothing would bound their number.
  if (count > 0 && (columns.length === 0 || count > reader.remaining)) reader.fail(`absurd count ${count}`);
  const entries: FileEntry[] = [];
  for (let i = 0; i < count; i++) {
    let name = () => '?';
    let folder = 0;
    for (const { content, form } of columns) {
      const value = readForm(reader, form, is64, strings);
      if (content === DW_LNCT_path && typeof value === 'function') name = value;
      else if (content === DW_LNCT_directory_index && typeof value === 'number') folder = value;
    }
    entries.push({ name, folder });
  }
  return entries;
}

/** The forms that section 6.2.4.1 allows; undefined for values that nobody asks for. */
function readForm(
  reader: ByteReader,
  form: number,
  is64: boolean,
  strings: Strings,
): (() => string) | number | undefined {
  const readOffset = () => (is64 ? reader.readSize() : reader.readU32());
  const skip = (sizeBytes: number) => {
    reader.skip(sizeBytes);
    return undefined;
  };
  switch (form) {
    case 0x08: {
      const text = reader.readCString(); // DW_FORM_string
      return () => text;
    }
    case 0x1f: // DW_FORM_line_strp
      return stringAt(reader, strings.lineStrings, readOffset());
    case 0x0e: // DW_FORM_strp
      return stringAt(reader, strings.strings, readOffset());
    case 0x0f: // DW_FORM_udata
      return reader.readUleb128();
    case 0x0b: // DW_FORM_data1
      return reader.readU8();
    case 0x05: // DW_FORM_data2
      return reader.readU16();
    case 0x06: // DW_FORM_data4
      return reader.readU32();
    case 0x07: // DW_FORM_data8
      return skip(8);
    case 0x1e: // DW_FORM_data16
      return skip(16);
    case 0x09: // DW_FORM_block
      return skip(reader.readUleb128());
    case 0x0a: // DW_FORM_block1
      return skip(reader.readU8());
    case 0x1a: // DW_FORM_strx: of a table that only compilation units know
      reader.readUleb128();
      return undefined;
    case 0x25: // DW_FORM_strx1 to strx4
    case 0x26:
    case 0x27:
    case 0x28:
      return skip(form - 0x24);
    default:
      return reader.fail(`form 0x${form.toString(16)} in a line table`);
  }
}

function stringAt(reader: ByteReader, strings: Uint8Array | undefined, offset: number): () => string {
  const end = strings === undefined || offset >= strings.length ? -1 : strings.indexOf(0, offset);
  if (strings === undefined || end < 0) return reader.fail(`no string at ${offset}`);
  return () => decodeText(strings.subarray(offset, end));
}
