import { describe, expect, it } from 'vitest';
import type { Registry } from './registry.js';
import { RegistryStore, SLOTS_OFFSET } from './registry-store.js';

const ADDRESS = 0x7000_0000;

/** Memory of a process whose writes fail from a given one on, until it is mended. */
class FailingMemory {
  readonly pid = 1;
  readonly #bytes = Buffer.alloc(SLOTS_OFFSET);
  writesLeft = Infinity;

  write(address: number, bytes: Uint8Array): void {
    if (this.writesLeft-- <= 0) throw new Error('no write is left');
    this.#bytes.set(bytes, address - ADDRESS);
  }

  readExactly(address: number, sizeBytes: number): Buffer {
    return Buffer.from(this.#bytes.subarray(address - ADDRESS, address - ADDRESS + sizeBytes));
  }
}

/** Told apart by the size of its slots. */
const registry = (sizeBytes: number): Registry => ({
  slots: { kind: 'gsBase', address: 0, sizeBytes },
  patches: [],
  transition: undefined,
  retired: [],
});
const stored = (memory: FailingMemory) => new RegistryStore(memory, ADDRESS).read()?.slots.sizeBytes;

describe('an update that fails at any of its writes', () => {
  it.each([0, 1, 2])(
    'leaves the registry as it was, also for the updates behind it (%i writes done)',
    (done) => {
      const memory = new FailingMemory();
      const store = new RegistryStore(memory, ADDRESS);
      store.write(registry(1));
      store.write(registry(2));
      for (let again = 0; again < 3; again++) {
        memory.writesLeft = done;
        expect(() => store.write(registry(3))).toThrow('no write is left');
        memory.writesLeft = Infinity;
        expect(stored(memory)).toBe(2);
      }
      store.write(registry(4));
      expect(stored(memory)).toBe(4);
    },
  );
});
