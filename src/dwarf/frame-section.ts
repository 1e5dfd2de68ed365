import { ByteReader } from '../base/byte-reader.js';
import { DW_EH_PE_omit, readEncodedPointer, readEncodedValue } from './eh-pointer.js';

/** A common information entry. Offsets count from the start of the section. */
export interface Cie {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly augmentation: string;
  readonly codeAlignment: number;
  readonly dataAlignment: number;
  readonly returnAddressRegister: number;
  readonly pointerEncoding: number;
  readonly lsdaEncoding: number;
  /** Where the personality pointer lies, undefined when the CIE has none. */
  readonly personalityAt: number | undefined;
  readonly signalFrame: boolean;
  readonly instructions: Uint8Array;
}

/** A frame description entry. `start` and `end` are addresses in the address space of the section. */
export interface Fde {
  readonly offset: number;
  readonly sizeBytes: number;
  readonly cie: Cie;
  /** Offset of the initial location's field, where a relocatable object has its relocation. */
  readonly locationAt: number;
  readonly start: number;
  readonly end: number;
  /** Offset of the pointer to the language-specific data, undefined when there is none. */
  readonly lsdaAt: number | undefined;
  readonly instructions: Uint8Array;
  /** Reads a pointer in the CIE's encoding from the call frame instructions (`DW_CFA_set_loc`). */
  readonly readLocation: (reader: ByteReader) => number;
}

export interface FrameSectionOptions {
  readonly bytes: Uint8Array;
  /** Address of the section's first byte. */
  readonly address: number;
  readonly kind: 'eh_frame' | 'debug_frame';
  readonly source: string;
  /** Base of `textrel` and `datarel` encodings. */
  readonly textBase?: number;
  readonly dataBase?: number;
}

/** Reads CIEs and FDEs of `.eh_frame` or `.debug_frame` (DWARF 5 section 6.4.1; LSB 5.0, ".eh_frame"). */
export class FrameSection {
  readonly #options: FrameSectionOptions;
  readonly #cies = new Map<number, Cie>();

  constructor(options: FrameSectionOptions) {
    this.#options = options;
  }

  /** All FDEs in order. Throws a ParseError for a malformed section. */
  *entries(): IterableIterator<Fde> {
    const { bytes } = this.#options;
    for (let offset = 0; offset + 4 <= bytes.length; ) {
      const header = this.#readHeader(offset);
      if (header === undefined) break;
      if (!header.isCie) yield this.#parseFde(offset);
      offset = header.end;
    }
  }

  /** The FDE whose entry starts at `offset`. */
  fdeAt(offset: number): Fde {
    return this.#parseFde(offset);
  }

  /** The address of an FDE's language-specific data, undefined for none. */
  lsdaAddress(fde: Fde): number | undefined {
    if (fde.lsdaAt === undefined) return undefined;
    const address = this.#readPointer(this.#reader(fde.lsdaAt), fde.cie.lsdaEncoding);
    return address === 0 ? undefined : address;
  }

  #reader(offset: number): ByteReader {
    return new ByteReader(this.#options.bytes, this.#options.source).seek(offset);
  }

  /** Undefined for the zero-length entry that ends an `.eh_frame`. */
  #readHeader(offset: number) {
    const reader = this.#reader(offset);
    let length = reader.readU32();
    const is64 = length === 0xffffffff;
    if (is64) length = reader.readSize();
    if (length === 0) return undefined;
    if (length > reader.remaining) reader.fail(`entry of ${length} bytes, ${reader.remaining} left`);
    const body = reader.offset;
    const isEhFrame = this.#options.kind === 'eh_frame';
    // LSB 5.0: the id of `.eh_frame` has four bytes, also behind an extended length.
    const id = is64 && !isEhFrame ? reader.readAddress() : reader.readU32();
    const isCie = isEhFrame ? id === 0 : id === (is64 ? -1 : 0xffffffff);
    const cieOffset = isEhFrame ? body - id : id;
    return { reader, end: body + length, isCie, cieOffset };
  }

  #parseCie(offset: number, from: ByteReader): Cie {
    const known = this.#cies.get(offset);
    if (known !== undefined) return known;
    if (!Number.isInteger(offset) || offset < 0 || offset >= this.#options.bytes.length) {
      return from.fail(`its CIE would lie at ${offset}, outside of the section`);
    }
    const header = this.#readHeader(offset);
    if (header?.isCie !== true) return from.fail(`there is no CIE at ${offset}`);
    const { reader, end } = header;
    const version = reader.readU8();
    if (version !== 1 && version !== 3 && version !== 4) reader.fail(`CIE version ${version}`);
    const augmentation = reader.readCString();
    if (augmentation === 'eh') reader.skip(8);
    if (version === 4) {
      const addressSize = reader.readU8();
      const segmentSize = reader.readU8();
      if (addressSize !== 8 || segmentSize !== 0)
        reader.fail(`address size ${addressSize}, segment size ${segmentSize}`);
    }
    const codeAlignment = reader.readUleb128();
    const dataAlignment = reader.readSleb128();
    const returnAddressRegister = version === 1 ? reader.readU8() : reader.readUleb128();
    let pointerEncoding = 0;
    let lsdaEncoding = DW_EH_PE_omit;
    let personalityAt: number | undefined;
    let signalFrame = false;
    if (augmentation.startsWith('z')) {
      const size = reader.readUleb128();
      const after = reader.offset + size;
      for (const letter of augmentation.slice(1)) {
        if (letter === 'R') pointerEncoding = reader.readU8();
        else if (letter === 'L') lsdaEncoding = reader.readU8();
        else if (letter === 'P') {
          const encoding = reader.readU8();
          personalityAt = reader.offset;
          this.#readPointer(reader, encoding);
        } else if (letter === 'S') signalFrame = true;
        else if (letter !== 'B') break;
      }
      reader.seek(after);
    } else if (/^S+$/.test(augmentation))
      // The GNU assembler marks signal frames of `.debug_frame` so, without further data.
      signalFrame = true;
    else if (augmentation !== '' && augmentation !== 'eh')
      reader.fail(`unknown augmentation "${augmentation}"`);
    const cie: Cie = {
      offset,
      sizeBytes: end - offset,
      augmentation,
      codeAlignment,
      dataAlignment,
      returnAddressRegister,
      pointerEncoding,
      lsdaEncoding,
      personalityAt,
      signalFrame,
      instructions: instructionsOf(reader, end),
    };
    this.#cies.set(offset, cie);
    return cie;
  }

  #parseFde(offset: number): Fde {
    const header = this.#readHeader(offset);
    if (header === undefined || header.isCie) return this.#reader(offset).fail('no FDE here');
    const { reader, end } = header;
    const cie = this.#parseCie(header.cieOffset, reader);
    const locationAt = reader.offset;
    const start = this.#readPointer(reader, cie.pointerEncoding);
    // The range has the same format, but is a plain number.
    const size = readEncodedValue(reader, cie.pointerEncoding & 0x0f);
    if (size < 0) reader.fail(`a range of ${size} bytes`);
    let lsdaAt: number | undefined;
    if (cie.augmentation.startsWith('z')) {
      const augmentationBytes = reader.readUleb128();
      const after = reader.offset + augmentationBytes;
      if (cie.lsdaEncoding !== DW_EH_PE_omit && augmentationBytes > 0) lsdaAt = reader.offset;
      reader.seek(after);
    }
    const instructions = instructionsOf(reader, end);
    return {
      offset,
      sizeBytes: end - offset,
      cie,
      locationAt,
      start,
      end: start + size,
      lsdaAt,
      instructions,
      readLocation: (program) => this.#readPointer(program, cie.pointerEncoding, end - instructions.length),
    };
  }

  /** `readerStart` is the offset in the section of the reader's first byte. */
  #readPointer(reader: ByteReader, encoding: number, readerStart = 0): number {
    return readEncodedPointer(reader, encoding, this.#options.address + readerStart, this.#options);
  }
}

function instructionsOf(reader: ByteReader, end: number): Uint8Array {
  if (reader.offset > end) reader.fail('its header is longer than the entry');
  return reader.bytes.subarray(reader.offset, end);
}

/** The sorted table of `.eh_frame_hdr` (LSB 5.0, ".eh_frame_hdr"), undefined when it has none in the usual format. */
export function parseFrameHeaderTable(
  bytes: Uint8Array,
  address: number,
  source: string,
): { readonly starts: Float64Array; readonly entries: Float64Array } | undefined {
  const reader = new ByteReader(bytes, source);
  if (reader.readU8() !== 1) return undefined;
  const frameEncoding = reader.readU8();
  const countEncoding = reader.readU8();
  const tableEncoding = reader.readU8();
  // datarel | sdata4 is what every linker writes.
  if (tableEncoding !== 0x3b || countEncoding === DW_EH_PE_omit) return undefined;
  readEncodedValue(reader, frameEncoding & 0x0f);
  const count = readEncodedValue(reader, countEncoding & 0x0f);
  if (count < 0 || count * 8 > reader.remaining) return undefined;
  const starts = new Float64Array(count);
  const entries = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    starts[i] = address + reader.readI32();
    entries[i] = address + reader.readI32();
    if (i > 0 && (starts[i] as number) < (starts[i - 1] as number)) return undefined;
  }
  return { starts, entries };
}
