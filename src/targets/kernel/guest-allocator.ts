import { LivegraftError } from '../../base/errors.js';
import type { GuestCall } from './guest-calls.js';
import type { KernelAddresses } from './running-kernel.js';

/** Memory for code from the allocator that modules use, near the kernel's text. What fails leaves nothing allocated. */
export class GuestAllocator {
  readonly #kernel: Pick<KernelAddresses, 'expect'>;
  readonly #call: GuestCall;

  /** `call` in a task that is borrowed. */
  constructor(kernel: Pick<KernelAddresses, 'expect'>, call: GuestCall) {
    this.#kernel = kernel;
    this.#call = call;
  }

  /** Rejects with `guest-no-memory`. */
  async allocate(sizeBytes: number): Promise<number> {
    const result = await this.#call(this.#kernel.expect('module_alloc'), sizeBytes);
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
    await this.#call(this.#kernel.expect('vfree'), address);
    return true;
  }

  async #change(name: string, address: number, pages: number): Promise<number> {
    return Number(BigInt.asIntN(32, await this.#call(this.#kernel.expect(name), address, pages)));
  }
}
