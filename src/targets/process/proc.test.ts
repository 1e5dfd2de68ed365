import { describe, expect, it } from 'vitest';
import { hasFsgsbase } from './proc.js';

describe('hasFsgsbase', () => {
  const auxv = (...pairs: (readonly [number, bigint])[]) => {
    const bytes = Buffer.alloc(16 * pairs.length);
    pairs.forEach(([type, value], i) => {
      bytes.writeBigUInt64LE(BigInt(type), 16 * i);
      bytes.writeBigUInt64LE(value, 16 * i + 8);
    });
    return bytes;
  };

  it('goes by bit 1 of AT_HWCAP2, and by nothing else', () => {
    expect(hasFsgsbase(auxv([6, 4096n], [26, 2n], [0, 0n]))).toBe(true);
    expect(hasFsgsbase(auxv([16, 2n], [26, 1n], [0, 0n]))).toBe(false);
    expect(hasFsgsbase(auxv([16, 2n], [0, 0n]))).toBe(false);
    expect(hasFsgsbase(auxv([26, 2n]).subarray(0, 12))).toBe(false);
  });
});
