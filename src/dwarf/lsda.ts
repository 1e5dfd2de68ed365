import { ByteReader } from '../base/byte-reader.js';
import { DW_EH_PE_omit, readEncodedPointer } from './eh-pointer.js';

/** A stretch of a function's code with the place where an exception that leaves it is caught. */
export interface CallSite {
  /** From the function's start, in bytes. */
  readonly start: number;
  readonly end: number;
  /** Where control goes on: from the function's start, or an address where the table says so; undefined for nowhere. */
  readonly landingPad: number | undefined;
}

export interface Lsda {
  readonly callSites: readonly CallSite[];
  /** What landing pads count from, undefined for the function's start. */
  readonly landingPadBase: number | undefined;
}

/**
 * The call-site table of a function's language-specific data (`.gcc_except_table`; Itanium C++ ABI, Level II, as GCC and LLVM
 * write it). `bytes` is the section, `address` its address, `offset` where the data begin. Throws a ParseError.
 */
export function parseLsda(bytes: Uint8Array, address: number, offset: number, source: string): Lsda {
  const reader = new ByteReader(bytes, `${source}(.gcc_except_table)`).seek(offset);
  const baseEncoding = reader.readU8();
  const landingPadBase =
    baseEncoding === DW_EH_PE_omit ? undefined : readEncodedPointer(reader, baseEncoding, address);
  if (reader.readU8() !== DW_EH_PE_omit) reader.readUleb128(); // the type table's end
  const encoding = reader.readU8();
  const sizeBytes = reader.readUleb128();
  if (sizeBytes > reader.remaining) reader.fail(`a call-site table of ${sizeBytes} bytes`);
  const end = reader.offset + sizeBytes;
  const callSites: CallSite[] = [];
  while (reader.offset < end) {
    const start = readEncodedPointer(reader, encoding, address);
    const length = readEncodedPointer(reader, encoding, address);
    const landingPad = readEncodedPointer(reader, encoding, address);
    reader.readUleb128(); // the action
    if (start < 0 || length < 0) reader.fail(`a call site of ${length} bytes at ${start}`);
    callSites.push({ start, end: start + length, landingPad: landingPad === 0 ? undefined : landingPad });
  }
  return { callSites, landingPadBase };
}
