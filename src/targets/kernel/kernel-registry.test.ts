import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import { findAnchorPlace, type KernelRegistry, KernelRegistryStore } from './kernel-registry.js';

const ETEXT = -0x7e1f_e100;
const MEMORY = -0x3fa0_0000;

/** Sparse bytes that can be told to fail at the n-th write, as a killed livegraft would. */
class FakeMemory {
  readonly bytes = new Map<number, number>();
  writesLeft = Number.POSITIVE_INFINITY;
  largestWrite = 0;

  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    return Uint8Array.from({ length: sizeBytes }, (_, i) => this.bytes.get(address + i) ?? 0xcc);
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    if (this.writesLeft-- <= 0) throw new LivegraftError('gdb-connection-lost', 'killed');
    bytes.forEach((byte, i) => {
      this.bytes.set(address + i, byte);
    });
  }
}

function registryOf(serial: number): KernelRegistry {
  return {
    patches: [],
    serial,
    transition: { patchId: 'x', begunAs: 'patch', direction: 'patch', switchedValue: serial },
  };
}

describe('KernelRegistryStore', () => {
  it('finds nothing in a kernel that was never patched', async () => {
    const store = new KernelRegistryStore(new FakeMemory(), new FakeMemory(), ETEXT);
    expect(await store.read()).toMatchObject({ patches: [], transition: undefined });
    expect(store.hasMemory).toBe(false);
  });

  it('finds what another run wrote, and which task it borrowed', async () => {
    const memory = new FakeMemory();
    const store = new KernelRegistryStore(memory, memory, ETEXT);
    await store.useMemory(MEMORY);
    for (let serial = 1; serial <= 3; serial++) await store.write(registryOf(serial));
    await store.noteBorrowed(-0x1234_0000_0000);
    const other = new KernelRegistryStore(memory, memory, ETEXT);
    expect(await other.read()).toEqual(registryOf(3));
    expect(other.hasMemory).toBe(true);
    expect(other.borrowed).toBe(-0x1234_0000_0000);
  });

  it('knows the barrier of a patch that was written when it was a single function', async () => {
    const memory = new FakeMemory();
    const store = new KernelRegistryStore(memory, memory, ETEXT);
    await store.useMemory(MEMORY);
    const place = { site: -0x1000, original: [0x0f, 0x1f, 0x44, 0x00, 0x00], trampoline: -0x2000 };
    const old = { ...registryOf(1), patches: [{ name: 'p', barrier: { name: 'edge', ...place } }] };
    await store.write(old as unknown as KernelRegistry);
    const { patches } = await new KernelRegistryStore(memory, memory, ETEXT).read();
    expect(patches[0]?.barrier).toEqual({ name: 'edge', places: [{ ...place, next: -0xffb }] });
  });

  it('keeps a whole registry when it is killed at any write', async () => {
    for (let writes = 0; writes < 4; writes++) {
      const memory = new FakeMemory();
      const store = new KernelRegistryStore(memory, memory, ETEXT);
      await store.useMemory(MEMORY);
      await store.write(registryOf(1));
      memory.writesLeft = writes;
      for (const serial of [2, 3]) await store.write(registryOf(serial)).catch(() => {});
      const found = await new KernelRegistryStore(memory, memory, ETEXT).read();
      expect(found).toEqual(registryOf(1 + Math.floor(writes / 2)));
    }
  });

  it('says that it is damaged, instead of believing it', async () => {
    const memory = new FakeMemory();
    const store = new KernelRegistryStore(memory, memory, ETEXT);
    await store.useMemory(MEMORY);
    await store.write(registryOf(1));
    const at = [...memory.bytes.keys()].find(
      (address) => memory.bytes.get(address) === '"'.charCodeAt(0),
    ) as number;
    memory.bytes.set(at, 0);
    await expect(new KernelRegistryStore(memory, memory, ETEXT).read()).rejects.toMatchObject({
      code: 'registry-damaged',
    });
  });

  it('has its anchor behind the text, or in what the text was filled up with to the end of its page', () => {
    const image = (text: number[]) => (_: number, sizeBytes: number) =>
      Uint8Array.from({ length: sizeBytes }, (_, i) => text[i] ?? 0xcc);
    expect(findAnchorPlace(-0x7e1f_e10e, image([0x90]))).toBe(ETEXT);
    expect(findAnchorPlace(-0x7e00_0000, image([]))).toBe(-0x7e00_0040);
    expect(findAnchorPlace(-0x7e00_0010, image([]))).toBe(-0x7e00_0040);
    for (const bytes of [image([0x90]), () => undefined])
      expect(() => findAnchorPlace(-0x7e00_0000, bytes)).toThrow('no room is left');
  });
});
