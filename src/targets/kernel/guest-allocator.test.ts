import { describe, expect, it } from 'vitest';
import { findCodeAllocator, GuestAllocator } from './guest-allocator.js';

const NAMES = [
  'module_alloc',
  'execmem_alloc',
  'execmem_free',
  'set_memory_ro',
  'set_memory_rw',
  'set_memory_x',
  'set_memory_nx',
  'vfree',
];
const MEMORY = -0x3f00_0000;
const ENOMEM = BigInt.asUintN(64, -12n);

const placeOf = (name: string) => NAMES.indexOf(name);
const OLDER = { allocate: placeOf('module_alloc'), kind: [], free: placeOf('vfree') };

/** A kernel with one allocation at most, some of whose calls fail. */
class Kernel {
  isAllocated = false;
  readonly changed = new Set<string>();
  readonly calls: string[] = [];

  constructor(readonly failing: (name: string) => boolean = () => false) {}

  expect(name: string): number {
    return placeOf(name);
  }

  call = async (address: number, ...args: readonly number[]): Promise<bigint> => {
    const name = NAMES[address] as string;
    this.calls.push(name);
    if (name === 'module_alloc') {
      if (this.failing(name)) return 0n;
      this.isAllocated = true;
      return BigInt.asUintN(64, BigInt(MEMORY));
    }
    expect(args[0]).toBe(MEMORY);
    if (name === 'vfree') {
      // What is not as it was must not go to somebody else.
      expect([...this.changed]).toEqual([]);
      this.isAllocated = false;
      return 0n;
    }
    expect(args[1]).toBe(2);
    // One that fails may have changed some of the pages.
    if (name === 'set_memory_ro') this.changed.add('ro');
    if (name === 'set_memory_x') this.changed.add('x');
    if (this.failing(name)) return ENOMEM;
    if (name === 'set_memory_rw') this.changed.delete('ro');
    if (name === 'set_memory_nx') this.changed.delete('x');
    return 0n;
  };

  get allocator(): GuestAllocator {
    return new GuestAllocator(this, OLDER, this.call);
  }

  allocate(): Promise<number> {
    return this.allocator.allocateCode(12345, 2);
  }
}

describe('memory for code in a guest', () => {
  it('comes from the allocator of modules that the kernel has', () => {
    const kernel = (...missing: string[]) => {
      const find = (name: string) => (missing.includes(name) ? undefined : placeOf(name));
      return { find, expect: (name: string) => find(name) ?? Number.NaN };
    };
    const layout = { enumValue: () => 4 };
    expect(findCodeAllocator(kernel('execmem_alloc'), layout)).toEqual(OLDER);
    expect(findCodeAllocator(kernel('module_alloc'), layout)).toEqual({
      ...{ allocate: placeOf('execmem_alloc'), kind: [4], free: placeOf('execmem_free') },
    });
  });

  it('is read-only and executable', async () => {
    const kernel = new Kernel();
    expect(await kernel.allocate()).toBe(MEMORY);
    expect([...kernel.changed].sort()).toEqual(['ro', 'x']);
    expect(await kernel.allocator.freeCode(MEMORY, 2)).toBe(true);
    expect(kernel.isAllocated).toBe(false);
  });

  it('is given back when a step fails', async () => {
    for (const failing of ['module_alloc', 'set_memory_ro', 'set_memory_x']) {
      const kernel = new Kernel((name) => name === failing);
      await expect(kernel.allocate()).rejects.toMatchObject({ code: 'guest-no-memory' });
      expect([failing, kernel.isAllocated]).toEqual([failing, false]);
    }
  });

  it('is kept when it can not be made what it was, and that is said', async () => {
    for (const failing of ['set_memory_rw', 'set_memory_nx']) {
      const kernel = new Kernel((name) => name === failing || name === 'set_memory_x');
      await expect(kernel.allocate()).rejects.toMatchObject({
        code: 'guest-no-memory',
        remedy: expect.stringContaining('12345 bytes of it stay allocated'),
      });
      expect(kernel.isAllocated).toBe(true);
    }
  });
});
