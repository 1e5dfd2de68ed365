import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { GdbClient } from './gdb-client.js';
import { isMemoryError } from './gdb-memory.js';
import type { MemorySource } from './guest-memory.js';
import type { GuestRegisters } from './guest-registers.js';
import type { GuestSlices } from './guest-slices.js';
import { addressOf } from './kernel-layout.js';
import type { KernelAddresses } from './running-kernel.js';

const PAGE_BYTES = 4096;
const ENTRY_PRESENT = 1;
const ENTRY_HUGE = 0x80;
/** Bits 12 to 51 of an entry (Intel SDM volume 3, section 4.5). */
const ADDRESS_MASK = 0x000f_ffff_ffff_f000n;
const CR4_LA57 = 1n << 12n;
const START_KERNEL_MAP = -0x8000_0000;
/** Where the kernel's image ends at the latest (KERNEL_IMAGE_SIZE). */
const MODULES = START_KERNEL_MAP + 0x4000_0000;
/** Above this QEMU's machines put part of the memory behind a hole, and the file is no picture of it any more. */
const MAX_FILE_BYTES = 0xb000_0000;

/**
 * Guest memory through the file that QEMU shares (`memory-backend-file,share=on`), about a hundred times as fast as the
 * protocol. Addresses are translated by the kernel's own page table. Code must not be written here: an emulator would not notice.
 */
export class SharedMemory implements MemorySource {
  readonly #file: number;
  readonly #root: number;
  readonly #levels: 4 | 5;
  readonly #entry = new Uint8Array(8);
  readonly #entryView = new DataView(this.#entry.buffer);
  /** Physical addresses of pages; -1 where nothing is mapped. */
  readonly #pages = new Map<number, number>();
  /** Of those that the kernel never maps elsewhere: its own image, and its map of all memory. */
  readonly #fixedPages = new Map<number, number>();
  /** Where the map of all memory begins and ends; nowhere, when that is not known. */
  #directMap = { start: 0, end: 0 };

  private constructor(file: number, root: number, levels: 4 | 5) {
    this.#file = file;
    this.#root = root;
    this.#levels = levels;
  }

  /** Rejects with `guest-memory-file` when the file can't be used or is not the memory of this guest. */
  static async open(
    path: string,
    client: GdbClient,
    slices: GuestSlices,
    kernel: KernelAddresses,
  ): Promise<SharedMemory> {
    const fail = (problem: string, cause?: unknown): never => {
      throw new LivegraftError('guest-memory-file', `${path}: ${problem}`, {
        remedy:
          'give the mem-path of the guest’s memory-backend-file (share=on), or leave --guest-memory out',
        cause,
      });
    };
    let file: number;
    try {
      file = openSync(path, 'r+');
    } catch (cause) {
      return fail((cause as Error).message, cause);
    }
    try {
      if (fstatSync(file).size > MAX_FILE_BYTES)
        fail('more than 2.75 GiB: how the machine lays that out is not known');
      const base = await slices.readMemory(kernel.expect('phys_base'), 8);
      const physBase = Number(new DataView(base.buffer, base.byteOffset, 8).getBigInt64(0, true));
      await slices.stop();
      const [registers] = await client.readAllRegisters(await client.vcpus());
      slices.resume();
      const root = kernel.expect('init_top_pgt') - START_KERNEL_MAP + physBase;
      const memory = new SharedMemory(
        file,
        root,
        ((registers as GuestRegisters).get('cr4') & CR4_LA57) === 0n ? 4 : 5,
      );
      // Kernels that place it at random keep here where (CONFIG_DYNAMIC_MEMORY_LAYOUT).
      const bounds = ['page_offset_base', 'vmalloc_base'].map((name) => kernel.find(name));
      const [start, end] = bounds
        .map((at) => at && memory.readNow(at, 8))
        .map((bytes) => bytes && addressOf(bytes));
      if (start !== undefined && end !== undefined && start < end && end < 0)
        memory.#directMap = { start, end };
      const banner = kernel.expect('linux_banner');
      const [shared, real] = [await memory.readMemory(banner, 64), await slices.readMemory(banner, 64)];
      if (!shared.every((byte, i) => byte === real[i])) fail('it is not the memory of this guest');
      return memory;
    } catch (error) {
      closeSync(file);
      if (isMemoryError(error)) fail('it is not the memory of this guest');
      throw error;
    }
  }

  /** The guest has run: mappings that are not fixed may have changed. */
  forget(): void {
    this.#pages.clear();
  }

  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    return this.readNow(address, sizeBytes) ?? notMapped(address);
  }

  readNow(address: number, sizeBytes: number): Uint8Array | undefined {
    const bytes = new Uint8Array(sizeBytes);
    const read = (physical: number, part: Uint8Array) => readSync(this.#file, part, 0, part.length, physical);
    return this.#transfer(address, bytes, read) ? bytes : undefined;
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    const write = (physical: number, part: Uint8Array) =>
      writeSync(this.#file, part, 0, part.length, physical);
    if (!this.#transfer(address, bytes, write)) notMapped(address);
  }

  /** Whether it holds these bytes; `scratch` is as long, and is overwritten. */
  holds(address: number, bytes: Uint8Array, scratch: Uint8Array): boolean {
    const read = (physical: number, part: Uint8Array) => readSync(this.#file, part, 0, part.length, physical);
    return this.#transfer(address, scratch, read) && Buffer.compare(bytes, scratch) === 0;
  }

  close(): void {
    closeSync(this.#file);
  }

  #transfer(
    address: number,
    bytes: Uint8Array,
    move: (physical: number, part: Uint8Array) => number,
  ): boolean {
    let page = Math.floor(address / PAGE_BYTES) * PAGE_BYTES;
    let skip = address - page;
    for (let at = 0; at < bytes.length; page += PAGE_BYTES) {
      const part = bytes.subarray(at, at + PAGE_BYTES - skip);
      const physical = this.#translate(page);
      if (physical < 0 || move(physical + skip, part) !== part.length) return false;
      at += part.length;
      skip = 0;
    }
    return true;
  }

  #translate(page: number): number {
    const known = this.#fixedPages.get(page) ?? this.#pages.get(page);
    if (known !== undefined) return known;
    const physical = this.#walk(BigInt.asUintN(64, BigInt(page)));
    const { start, end } = this.#directMap;
    const isFixed = (page >= start && page < end) || (page >= START_KERNEL_MAP && page < MODULES);
    if (isFixed && physical >= 0) this.#fixedPages.set(page, physical);
    else this.#pages.set(page, physical);
    return physical;
  }

  #walk(page: bigint): number {
    let table = this.#root;
    for (let level: number = this.#levels; level >= 1; level--) {
      const shift = BigInt(12 + 9 * (level - 1));
      const index = Number((page >> shift) & 0x1ffn);
      if (table < 0 || readSync(this.#file, this.#entry, 0, 8, table + 8 * index) !== 8) return -1;
      const entry = this.#entryView.getBigUint64(0, true);
      if ((Number(entry & 0xffn) & ENTRY_PRESENT) === 0) return -1;
      if (level === 1 || (Number(entry & 0xffn) & ENTRY_HUGE) !== 0) {
        const within = page & ((1n << shift) - 1n);
        return Number((((entry & ADDRESS_MASK) >> shift) << shift) | within);
      }
      table = Number(entry & ADDRESS_MASK);
    }
    return -1;
  }
}

function notMapped(address: number): never {
  throw new LivegraftError('guest-memory', `guest memory at ${hex(address)} is not mapped`);
}
