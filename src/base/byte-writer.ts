/**
 * A growing little-endian byte buffer, the mirror of `ByteReader`. Positions can be patched afterwards.
 * Growing replaces the buffer, so room is made before the buffer is looked at.
 */
export class ByteWriter {
  #bytes: Uint8Array;
  #view: DataView;
  #length = 0;

  constructor(initialCapacityBytes = 256) {
    this.#bytes = new Uint8Array(initialCapacityBytes);
    this.#view = new DataView(this.#bytes.buffer);
  }

  get length(): number {
    return this.#length;
  }

  writeU8(value: number): this {
    const at = this.#grow(1);
    this.#view.setUint8(at, value);
    return this;
  }

  writeU16(value: number): this {
    const at = this.#grow(2);
    this.#view.setUint16(at, value, true);
    return this;
  }

  writeU32(value: number): this {
    const at = this.#grow(4);
    this.#view.setUint32(at, value, true);
    return this;
  }

  writeI32(value: number): this {
    const at = this.#grow(4);
    this.#view.setInt32(at, value, true);
    return this;
  }

  /** Takes an address or size as a number (signed reading, see `brand.ts`) or any 64-bit bigint. */
  writeU64(value: number | bigint): this {
    const at = this.#grow(8);
    this.#view.setBigUint64(at, BigInt.asUintN(64, BigInt(value)), true);
    return this;
  }

  writeUleb128(value: number): this {
    let rest = value;
    while (rest >= 0x80) {
      this.writeU8((rest % 0x80) | 0x80);
      rest = Math.floor(rest / 0x80);
    }
    return this.writeU8(rest);
  }

  writeSleb128(value: number): this {
    let rest = value;
    for (;;) {
      const low = ((rest % 0x80) + 0x80) % 0x80;
      rest = Math.floor(rest / 0x80);
      const done = (rest === 0 && (low & 0x40) === 0) || (rest === -1 && (low & 0x40) !== 0);
      this.writeU8(done ? low : low | 0x80);
      if (done) return this;
    }
  }

  writeCString(text: string): this {
    return this.writeBytes(new TextEncoder().encode(text)).writeU8(0);
  }

  writeBytes(bytes: Uint8Array): this {
    const at = this.#grow(bytes.length);
    this.#bytes.set(bytes, at);
    return this;
  }

  /** Fills with `filler` up to the next multiple of `alignment`. */
  align(alignment: number, filler = 0): this {
    while (this.#length % alignment !== 0) this.writeU8(filler);
    return this;
  }

  patchU8(offset: number, value: number): this {
    this.#view.setUint8(offset, value);
    return this;
  }

  patchU32(offset: number, value: number): this {
    this.#view.setUint32(offset, value, true);
    return this;
  }

  patchU64(offset: number, value: number | bigint): this {
    this.#view.setBigUint64(offset, BigInt.asUintN(64, BigInt(value)), true);
    return this;
  }

  /** The bytes written so far, as a copy. */
  toBytes(): Uint8Array {
    return this.#bytes.slice(0, this.#length);
  }

  #grow(sizeBytes: number): number {
    const start = this.#length;
    this.#length += sizeBytes;
    if (this.#length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#length, this.#bytes.length * 2));
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    return start;
  }
}
