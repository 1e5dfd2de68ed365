import { describe, expect, it } from 'vitest';
import { runFilter, seccompData } from './seccomp.js';

/** Assembles `[code, jt, jf, k]` rows as `struct sock_filter`. */
function program(...rows: readonly (readonly [number, number, number, number])[]): Buffer {
  const bytes = Buffer.alloc(rows.length * 8);
  rows.forEach(([code, jt, jf, k], i) => {
    bytes.writeUInt16LE(code, i * 8);
    bytes.writeUInt8(jt, i * 8 + 2);
    bytes.writeUInt8(jf, i * 8 + 3);
    bytes.writeUInt32LE(k >>> 0, i * 8 + 4);
  });
  return bytes;
}

const data = (number: number, ...args: number[]) => seccompData({ number, args }, 0x1000);

const ALLOW = 0x7fff0000;
const ERRNO_EPERM = 0x00050001;
const KILL = 0x80000000;

describe('runFilter', () => {
  // What a deny-list made by libseccomp looks like: architecture, number, verdict.
  const denyMmap = program(
    [0x20, 0, 0, 4],
    [0x15, 0, 4, 0xc000003e],
    [0x20, 0, 0, 0],
    [0x15, 1, 0, 9],
    [0x06, 0, 0, ALLOW],
    [0x06, 0, 0, ERRNO_EPERM],
    [0x06, 0, 0, KILL],
  );

  it('tells a forbidden call from an allowed one', () => {
    expect(runFilter(denyMmap, data(9)) >>> 0).toBe(ERRNO_EPERM);
    expect(runFilter(denyMmap, data(3)) >>> 0).toBe(ALLOW);
  });

  it('goes by arguments, of which it sees 32 bits at a time', () => {
    const denyExecutable = program(
      [0x20, 0, 0, 32],
      [0x54, 0, 0, 4],
      [0x15, 0, 1, 4],
      [0x06, 0, 0, KILL],
      [0x20, 0, 0, 20],
      [0x15, 1, 0, 0x7fff],
      [0x06, 0, 0, ALLOW],
      [0x06, 0, 0, ERRNO_EPERM],
    );
    expect(runFilter(denyExecutable, data(9, 0x1000, 4096, 5)) >>> 0).toBe(KILL);
    expect(runFilter(denyExecutable, data(9, 0x1000, 4096, 3)) >>> 0).toBe(ALLOW);
    expect(runFilter(denyExecutable, data(9, 0x7fff_0000_1000, 4096, 3)) >>> 0).toBe(ERRNO_EPERM);
    expect(runFilter(denyExecutable, data(9, -1, 4096, 3)) >>> 0).toBe(ALLOW);
  });

  it('computes with both registers, scratch memory and jumps', () => {
    const byRange = program(
      [0x20, 0, 0, 0],
      [0x02, 0, 0, 3],
      [0x61, 0, 0, 3],
      [0x04, 0, 0, 100],
      [0x1c, 0, 0, 0],
      [0x15, 0, 1, 100],
      [0x06, 0, 0, ALLOW],
      [0x06, 0, 0, KILL],
    );
    expect(runFilter(byRange, data(231)) >>> 0).toBe(ALLOW);
  });

  it('takes anything malformed for a refusal', () => {
    expect(runFilter(program([0x20, 0, 0, 4096]), data(1))).toBe(0);
    expect(runFilter(program([0x05, 0, 0, 50]), data(1))).toBe(0);
    expect(runFilter(Buffer.alloc(0), data(1))).toBe(0);
  });
});
