import { foldAddress } from './brand.js';
import { ParseError } from './errors.js';

/** A bounds-checked little-endian cursor over bytes. Every failure is a {@link ParseError} with the offset. */
export class ByteReader {
  readonly bytes: Uint8Array;
  readonly source: string;
  /** Added to offsets in errors, so that a reader over a section can report positions in the file. */
  readonly baseOffset: number;
  readonly #view: DataView;
  #offset = 0;

  constructor(bytes: Uint8Array, source: string, baseOffset = 0) {
    this.bytes = bytes;
    this.source = source;
    this.baseOffset = baseOffset;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get offset(): number {
    return this.#offset;
  }

  get remaining(): number {
    return this.bytes.length - this.#offset;
  }

  get atEnd(): boolean {
    return this.#offset >= this.bytes.length;
  }

  seek(offset: number): this {
    if (!Number.isInteger(offset) || offset < 0 || offset > this.bytes.length) {
      this.fail(`position ${offset} is outside of ${this.bytes.length} bytes`);
    }
    this.#offset = offset;
    return this;
  }

  skip(sizeBytes: number): this {
    return this.seek(this.#offset + sizeBytes);
  }

  readU8(): number {
    return this.#view.getUint8(this.#advance(1));
  }

  readI8(): number {
    return this.#view.getInt8(this.#advance(1));
  }

  readU16(): number {
    return this.#view.getUint16(this.#advance(2), true);
  }

  readI16(): number {
    return this.#view.getInt16(this.#advance(2), true);
  }

  readU32(): number {
    return this.#view.getUint32(this.#advance(4), true);
  }

  readI32(): number {
    return this.#view.getInt32(this.#advance(4), true);
  }

  readU64(): bigint {
    return this.#view.getBigUint64(this.#advance(8), true);
  }

  readI64(): bigint {
    return this.#view.getBigInt64(this.#advance(8), true);
  }

  /** A 64-bit address as the signed number of `src/base/brand.ts`. */
  readAddress(): number {
    return foldAddress(this.readU64());
  }

  /** A 64-bit count or size; one that no file can hold is malformed. */
  readSize(): number {
    const value = this.readU64();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) this.fail(`absurd size ${value}`);
    return Number(value);
  }

  /** DWARF 5 section 7.6. Values above 2^53 are malformed here: nothing that livegraft reads needs them. */
  readUleb128(): number {
    let result = 0;
    let scale = 1;
    for (;;) {
      const byte = this.readU8();
      result += (byte & 0x7f) * scale;
      if (result > Number.MAX_SAFE_INTEGER) this.fail('ULEB128 value exceeds 2^53');
      if (byte < 0x80) return result;
      scale *= 128;
      if (scale > 2 ** 70) this.fail('ULEB128 value is too long');
    }
  }

  /** DWARF 5 section 7.6. */
  readSleb128(): number {
    let result = 0;
    let scale = 1;
    for (;;) {
      const byte = this.readU8();
      result += (byte & 0x7f) * scale;
      scale *= 128;
      if (byte < 0x80) {
        if (byte & 0x40) result -= scale;
        if (!Number.isSafeInteger(result)) this.fail('SLEB128 value exceeds 2^53');
        return result;
      }
      if (scale > 2 ** 70) this.fail('SLEB128 value is too long');
    }
  }

  /** NUL-terminated bytes as latin1-safe UTF-8. */
  readCString(): string {
    const end = this.bytes.indexOf(0, this.#offset);
    if (end < 0) this.fail('string has no terminating NUL');
    const text = decodeText(this.bytes.subarray(this.#offset, end));
    this.#offset = end + 1;
    return text;
  }

  /** A view, not a copy. */
  readBytes(sizeBytes: number): Uint8Array {
    const start = this.#advance(sizeBytes);
    return this.bytes.subarray(start, start + sizeBytes);
  }

  /** A reader over the next `sizeBytes`, with offsets in errors still counted in the same source. */
  readReader(sizeBytes: number): ByteReader {
    const start = this.#advance(sizeBytes);
    return new ByteReader(
      this.bytes.subarray(start, start + sizeBytes),
      this.source,
      this.baseOffset + start,
    );
  }

  fail(problem: string): never {
    throw new ParseError(this.source, this.baseOffset + this.#offset, problem);
  }

  #advance(sizeBytes: number): number {
    if (!Number.isInteger(sizeBytes) || sizeBytes < 0 || sizeBytes > this.bytes.length - this.#offset) {
      this.fail(`needs ${sizeBytes} bytes, ${this.bytes.length - this.#offset} left`);
    }
    const start = this.#offset;
    this.#offset += sizeBytes;
    return start;
  }
}

const utf8 = new TextDecoder('utf-8');

export function decodeText(bytes: Uint8Array): string {
  return utf8.decode(bytes);
}
