import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import { GuestMemory } from './guest-memory.js';

/** Bytes that are their own address, where anything is mapped. */
class FakeSource {
  reads = 0;
  readonly changed = new Map<number, number>();

  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    this.reads++;
    if (address >= 0x10000) throw new LivegraftError('guest-memory', 'nothing is mapped there');
    return Uint8Array.from(
      { length: sizeBytes },
      (_, i) => this.changed.get(address + i) ?? (address + i) & 0xff,
    );
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    bytes.forEach((byte, i) => {
      this.changed.set(address + i, byte);
    });
  }
}

describe('GuestMemory', () => {
  it('reads across blocks, and each block once', async () => {
    const source = new FakeSource();
    const memory = new GuestMemory(source);
    const bytes = await memory.read(0x7f8, 0x1000);
    expect([...bytes.subarray(0, 3), ...bytes.subarray(0xfff)]).toEqual([0xf8, 0xf9, 0xfa, 0xf7]);
    const reads = source.reads;
    await memory.read(0x900, 8);
    expect(source.reads).toBe(reads);
    memory.forget();
    await memory.read(0x900, 8);
    expect(source.reads).toBe(reads + 1);
  });

  it('runs an attempt until it has all that it asked for', async () => {
    const memory = new GuestMemory(new FakeSource());
    let attempts = 0;
    const word = new Uint8Array(1);
    // A chain: each place is known only when the one before has been read.
    const last = await memory.settle(() => {
      attempts++;
      let at = 0x11;
      for (let i = 0; i < 3; i++) {
        if (memory.readInto(at * 0x100, word) !== 1) return -1;
        at += 0x20;
      }
      return at;
    });
    expect(last).toBe(0x71);
    expect(attempts).toBeGreaterThan(1);
    expect(attempts).toBeLessThanOrEqual(4);
  });

  it('says what can not be read, and does not ask for it again', async () => {
    const source = new FakeSource();
    const memory = new GuestMemory(source);
    for (let i = 0; i < 2; i++)
      await expect(memory.read(0xfff8, 16)).rejects.toMatchObject({ code: 'guest-memory' });
    expect(source.reads).toBe(2);
  });

  it('reads what it has written, code and data each through its own way', async () => {
    const [data, code] = [new FakeSource(), new FakeSource()];
    const memory = new GuestMemory(data, code);
    await memory.read(0x800, 8);
    await memory.write(0x800, Uint8Array.of(1, 2));
    expect([...(await memory.read(0x800, 3))]).toEqual([1, 2, 2]);
    await memory.writeCode(0x900, Uint8Array.of(9));
    expect(code.changed.get(0x900)).toBe(9);
    expect(data.changed.has(0x900)).toBe(false);
  });
});
