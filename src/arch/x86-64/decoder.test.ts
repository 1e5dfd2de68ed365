import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { compareFile } from '../../../test/oracle/decoder/compare-file.js';
import { decoder } from './decoder.js';

describe('decoder', () => {
  // The whole comparison is `npm run oracle:decoder`.
  it.each(['/usr/lib/x86_64-linux-gnu/libc.so.6', process.execPath])('agrees with iced-x86 on %s', (path) => {
    const { instructions, mismatches } = compareFile(readFileSync(path), path, 1_500_000);
    expect(instructions).toBeGreaterThan(100_000);
    expect([...mismatches]).toEqual([]);
  });

  it('never reads outside and never throws, on any bytes', () => {
    let seed = 12345;
    const next = () => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return seed >>> 16;
    };
    for (let i = 0; i < 50_000; i++) {
      const bytes = Uint8Array.from({ length: 1 + (next() % 18) }, () => next() & 0xff);
      const instruction = decoder.decode(bytes, 0, 0);
      if (instruction === undefined) continue;
      expect(instruction.lengthBytes).toBeGreaterThan(0);
      expect(instruction.lengthBytes).toBeLessThanOrEqual(bytes.length);
      expect(decoder.length(bytes, 0)).toBe(instruction.lengthBytes);
    }
  });

  it.each([
    ['e8 00 00 00 00', true],
    ['ff d0', true],
    ['41 ff d4', true],
    ['ff 15 00 00 00 00', true],
    ['ff 54 24 08', true],
    ['67 e8 00 00 00 00', true],
    ['90 90 90 90 90 90', false],
    ['ff e0', false],
    ['e9 00 00 00 00', false],
    ['', false],
  ])('says whether "%s" ends in a call: %s', (text, expected) => {
    const bytes = Uint8Array.from(text === '' ? [] : text.split(' '), (byte) => Number.parseInt(byte, 16));
    expect(decoder.isPrecededByCall(bytes, bytes.length)).toBe(expected);
  });
});
