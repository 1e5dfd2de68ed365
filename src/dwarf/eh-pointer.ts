import type { ByteReader } from '../base/byte-reader.js';

/** Pointer encodings of `.eh_frame` and `.gcc_except_table` (LSB 5.0 core, "DWARF Exception Header Encoding"). */
export const DW_EH_PE_omit = 0xff;
const DW_EH_PE_indirect = 0x80;
const DW_EH_PE_aligned = 0x50;

/**
 * Reads a pointer in an encoding. `address`: of the reader's first byte. An indirect pointer stays what it is: it is used for
 * personalities and types alone, of which only the place matters.
 */
export function readEncodedPointer(
  reader: ByteReader,
  encoding: number,
  address: number,
  bases: { readonly textBase?: number; readonly dataBase?: number } = {},
): number {
  if (encoding === DW_EH_PE_omit) return 0;
  const at = address + reader.offset;
  if (encoding === DW_EH_PE_aligned) {
    reader.skip((8 - (at & 7)) & 7);
    return reader.readAddress();
  }
  const value = readEncodedValue(reader, encoding & 0x0f);
  if ((encoding & DW_EH_PE_indirect) !== 0 || value === 0) return value;
  switch (encoding & 0x70) {
    case 0x00:
      return value;
    case 0x10:
      return at + value;
    case 0x20:
      return (bases.textBase ?? 0) + value;
    case 0x30:
      return (bases.dataBase ?? 0) + value;
    default:
      return reader.fail(`pointer encoding 0x${encoding.toString(16)}`);
  }
}

export function readEncodedValue(reader: ByteReader, format: number): number {
  switch (format) {
    case 0x00:
    case 0x04:
    case 0x0c:
      return reader.readAddress();
    case 0x01:
      return reader.readUleb128();
    case 0x02:
      return reader.readU16();
    case 0x03:
      return reader.readU32();
    case 0x09:
      return reader.readSleb128();
    case 0x0a:
      return reader.readI16();
    case 0x0b:
      return reader.readI32();
    default:
      return reader.fail(`pointer format 0x${format.toString(16)}`);
  }
}
