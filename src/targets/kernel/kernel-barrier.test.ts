import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import { findBarrier } from './kernel-barrier.js';
import type { KernelRange } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';

const BARRIER = 0x1000;
const PART = 0x2000;
const FENTRY_NOP = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const RETURN = 0xc3;

/** `call target` at an address, then a return. */
function callFrom(address: number, target: number): Uint8Array {
  const code = new Uint8Array(6);
  code[0] = 0xe8;
  new DataView(code.buffer).setInt32(1, target - (address + 5), true);
  code[5] = RETURN;
  return code;
}

const readMemory = async (address: number) =>
  address === BARRIER
    ? Uint8Array.of(...FENTRY_NOP, ...new Array(11).fill(RETURN))
    : callFrom(address, BARRIER);

/** A kernel with one function, `edge`, that all other code calls. */
const session = {
  kernel: {
    relocate: (address: number) => address,
    image: { symbols: { findAll: (name: string) => (name === 'edge' ? [{ address: BARRIER }] : []) } },
  },
  sliced: { readMemory },
  data: { readMemory },
} as unknown as KernelSession;

const find = (replaced: readonly KernelRange[], isUsed = false) =>
  findBarrier(
    ...([session, x86_64.decoder, 'edge', replaced] as const),
    () => false,
    (address) => isUsed && address === BARRIER,
  );

describe('a declared barrier', () => {
  it('is found at its fentry nop', async () => {
    expect(await find([])).toEqual({ name: 'edge', site: BARRIER, original: FENTRY_NOP });
  });

  it('is refused when code that leaves calls it', async () => {
    await expect(find([{ name: 'old.cold', address: PART, sizeBytes: 6 }])).rejects.toMatchObject({
      code: 'bad-barrier',
      message: expect.stringContaining('old.cold, which is replaced, calls it'),
    });
  });

  it('is refused when the new code calls it: that leaves when the patch is reverted', async () => {
    await expect(find([], true)).rejects.toMatchObject({ code: 'bad-barrier' });
  });
});
