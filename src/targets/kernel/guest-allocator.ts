import { LivegraftError } from '../../base/errors.js';
import type { GuestCall } from './guest-calls.js';
import type { KernelLayout } from './kernel-layout.js';
import type { KernelAddresses } from './running-kernel.js';

/** The functions by which modules get memory. All memory is writable at first, and not executable. */
export interface CodeAllocator {
  readonly allocate: number;
  /** Arguments in front of the size. */
  readonly kind: readonly number[];
  readonly free: number;
}

/**
 * `module_alloc` up to 6.9, `execmem_alloc` since (12af2b83d0b1). That of 6.13 and later may have text read-only from the start (5185e7f9f3bd), but
 * not what is for the data of modules, which lies in the same range. Throws `kernel-unsupported`.
 */
export function findCodeAllocator(
  kernel: Pick<KernelAddresses, 'find' | 'expect'>,
  layout: Pick<KernelLayout, 'enumValue'>,
): CodeAllocator {
  const allocate = kernel.find('execmem_alloc');
  const kind = layout.enumValue('execmem_type', 'EXECMEM_MODULE_DATA');
  if (allocate !== undefined && kind !== undefined)
    return { allocate, kind: [kind], free: kernel.expect('execmem_free') };
  return { allocate: kernel.expect('module_alloc'), kind: [], free: kernel.expect('vfree') };
}

/** Memory for code from the allocator that modules use, near the kernel's text. What fails leaves nothing allocated. */
export class GuestAllocator {
  readonly #kernel: Pick<KernelAddresses, 'expect'>;
  readonly #allocator: CodeAllocator;
  readonly #call: GuestCall;

  /** `call` in a task that is borrowed. */
  constructor(kernel: Pick<KernelAddresses, 'expect'>, allocator: CodeAllocator, call: GuestCall) {
    this.#kernel = kernel;
    this.#allocator = allocator;
    this.#call = call;
  }

  /** Rejects with `guest-no-memory`. */
  async allocate(sizeBytes: number): Promise<number> {
    const { allocate, kind } = this.#allocator;
    const result = await this.#call(allocate, ...kind, sizeBytes);
    const address = Number(BigInt.asIntN(64, result));
    if (address === 0) {
      throw new LivegraftError('guest-no-memory', `the guest has no ${sizeBytes} bytes for code`, {
        remedy: 'free memory in the guest (or module space), and repeat the command',
        details: { sizeBytes },
      });
    }
    return address;
  }

  /** With the first pages executable and read-only, the others as data. Rejects with `guest-no-memory`. */
  async allocateCode(sizeBytes: number, textPages: number): Promise<number> {
    const address = await this.allocate(sizeBytes);
    for (const name of ['set_memory_ro', 'set_memory_x']) {
      const result = await this.#change(name, address, textPages);
      if (result === 0) continue;
      const isFree = await this.freeCode(address, textPages);
      throw new LivegraftError('guest-no-memory', `${name} failed in the guest with ${result}`, {
        remedy: isFree
          ? 'free memory in the guest, and repeat the command'
          : `free memory in the guest; ${sizeBytes} bytes of it stay allocated, which could not be made writable again`,
        details: { function: name, result },
      });
    }
    return address;
  }

  /**
   * Gives back what {@link allocateCode} took. Whether it did: pages that can't be made writable again must not go to somebody
   * else, since the kernel's map of all memory has them read-only, too.
   */
  async freeCode(address: number, textPages: number): Promise<boolean> {
    for (const name of ['set_memory_nx', 'set_memory_rw'])
      if ((await this.#change(name, address, textPages)) !== 0) return false;
    await this.#call(this.#allocator.free, address);
    return true;
  }

  async #change(name: string, address: number, pages: number): Promise<number> {
    return Number(BigInt.asIntN(32, await this.#call(this.#kernel.expect(name), address, pages)));
  }
}
