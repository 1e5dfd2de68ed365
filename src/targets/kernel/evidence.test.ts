import { expect, it } from 'vitest';
import { Evidence } from './evidence.js';
import { GuestMemory } from './guest-memory.js';

const SIZE_BYTES = 64 * 1024;
const TEXT = { start: 0x8000, end: 0x9000 };

/** Memory that is read as it is at the moment, as that of a running guest. */
function create() {
  const bytes = new Uint8Array(SIZE_BYTES);
  const readNow = (address: number, sizeBytes: number) =>
    address < 0 || address + sizeBytes > SIZE_BYTES ? undefined : bytes.slice(address, address + sizeBytes);
  const memory = new GuestMemory({
    readMemory: async (address, sizeBytes) => readNow(address, sizeBytes) ?? new Uint8Array(),
    writeMemory: async () => {},
    readNow,
  });
  const shared = {
    holds: (address: number, expected: Uint8Array, scratch: Uint8Array) => {
      scratch.set(bytes.subarray(address, address + scratch.length));
      return Buffer.compare(expected, scratch) === 0;
    },
  };
  return { bytes, memory, evidence: new Evidence(memory, shared, TEXT) };
}

it('holds as long as every byte that was read is as it was, and no longer', async () => {
  const { bytes, memory, evidence } = create();
  const read = [0x1000, 0x1028, 0x4ff8, 0x8100];
  await evidence.gather(async () => {
    for (const address of read) await memory.read(address, 8);
  });
  expect(evidence.holds()).toBe(true);
  for (const address of read) {
    for (const at of [address, address + 7]) {
      bytes[at] = 1;
      // Code does not change.
      expect(evidence.holds()).toBe(at >= TEXT.start && at < TEXT.end);
      bytes[at] = 0;
    }
  }
  // Nothing was read there.
  bytes[0x3000] = 1;
  bytes[0x5100] = 1;
  expect(evidence.holds()).toBe(true);
});

it('finds out that memory changed while it was read', async () => {
  const { bytes, memory, evidence } = create();
  const seen = await evidence.gather(async () => {
    const [first] = await memory.read(0x1000, 1);
    bytes[0x1000] = 1;
    const [second] = await memory.read(0x5000, 1);
    return [first, second];
  });
  expect(seen).toEqual([0, 0]);
  expect(evidence.holds()).toBe(false);
});
