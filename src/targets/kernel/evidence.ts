import type { GuestMemory } from './guest-memory.js';
import type { SharedMemory } from './shared-memory.js';

/** Parts of memory that lie closer together than this are compared in one go. */
const MERGE_BYTES = 256;

interface Part {
  readonly address: number;
  readonly bytes: Uint8Array;
  /** What is there now goes in here: nothing is to be allocated while the guest stands still. */
  readonly scratch: Uint8Array;
}

/**
 * The bytes of a running guest that something was concluded from. Where they are the same in a stop, concluding it there
 * would have come to the same: whatever was read while it changed is found out. Code of the kernel's image does not count.
 */
export class Evidence {
  readonly #memory: GuestMemory;
  readonly #shared: Pick<SharedMemory, 'holds'>;
  readonly #text: { readonly start: number; readonly end: number };
  #parts: readonly Part[] = [];

  constructor(
    memory: GuestMemory,
    shared: Pick<SharedMemory, 'holds'>,
    text: { readonly start: number; readonly end: number },
  ) {
    this.#memory = memory;
    this.#shared = shared;
    this.#text = text;
  }

  /** `use` reads by the memory that this was made for. Whatever it throws passes through. */
  async gather<T>(use: () => Promise<T>): Promise<T> {
    const reads: { start: number; end: number }[] = [];
    const { start, end } = this.#text;
    const result = await this.#memory.observe((address, sizeBytes) => {
      if (address < start || address >= end) reads.push({ start: address, end: address + sizeBytes });
    }, use);
    this.#parts = merge(reads).flatMap(({ start: address, end: behind }) => {
      const bytes = this.#memory.readNow(address, behind - address);
      return bytes === undefined ? [] : [{ address, bytes, scratch: new Uint8Array(bytes.length) }];
    });
    return result;
  }

  /** In a stopped guest: whether all of it is as it was. */
  holds(): boolean {
    return this.#parts.every(({ address, bytes, scratch }) => this.#shared.holds(address, bytes, scratch));
  }
}

function merge(ranges: { start: number; end: number }[]): { start: number; end: number }[] {
  const merged: { start: number; end: number }[] = [];
  for (const { start, end } of ranges.sort((a, b) => a.start - b.start)) {
    const last = merged.at(-1);
    if (last !== undefined && start <= last.end + MERGE_BYTES) last.end = Math.max(last.end, end);
    else merged.push({ start, end });
  }
  return merged;
}
