import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ByteReader } from './byte-reader.js';
import { ByteWriter } from './byte-writer.js';
import { crc32 } from './crc32.js';
import { ParseError } from './errors.js';

describe('ByteWriter and ByteReader', () => {
  it('round-trip while the buffer grows', () => {
    const writer = new ByteWriter(1);
    for (let i = 0; i < 100; i++)
      writer
        .writeU8(i)
        .writeU16(i * 3)
        .writeU32(i * 1e6)
        .writeU64(-i)
        .writeCString(`s${i}`);
    const reader = new ByteReader(writer.toBytes(), 'test');
    for (let i = 0; i < 100; i++) {
      expect(reader.readU8()).toBe(i);
      expect(reader.readU16()).toBe(i * 3);
      expect(reader.readU32()).toBe(i * 1e6);
      expect(reader.readAddress()).toBe(0 - i);
      expect(reader.readCString()).toBe(`s${i}`);
    }
    expect(reader.atEnd).toBe(true);
  });

  it('round-trip LEB128 values', () => {
    fc.assert(
      fc.property(fc.integer({ min: -(2 ** 31), max: 2 ** 31 }), (value) => {
        const writer = new ByteWriter(1).writeSleb128(value).writeUleb128(Math.abs(value));
        const reader = new ByteReader(writer.toBytes(), 'test');
        expect(reader.readSleb128()).toBe(value);
        expect(reader.readUleb128()).toBe(Math.abs(value));
      }),
    );
  });

  it('never reads outside, and says where', () => {
    const reader = new ByteReader(Uint8Array.of(1, 2, 3), 'three bytes', 100);
    reader.readU8();
    expect(() => reader.readU32()).toThrow(ParseError);
    expect(() => reader.readU32()).toThrow(/three bytes: offset 101: needs 4 bytes, 2 left/);
    expect(() => reader.readCString()).toThrow(/no terminating NUL/);
    expect(() => reader.seek(4)).toThrow(ParseError);
    expect(() => new ByteReader(new Uint8Array(40).fill(0x80), 'x').readUleb128()).toThrow(ParseError);
  });
});

describe('crc32', () => {
  // The check value of the CRC catalogue for CRC-32/ISO-HDLC.
  it('has the published check value', () => {
    expect(crc32(new TextEncoder().encode('123456789'))).toBe(0xcbf43926);
  });
});
