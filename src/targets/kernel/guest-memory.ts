import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import { isMemoryError } from './gdb-memory.js';

/** A stopped guest's memory. */
export interface MemorySource {
  /** Rejects with a LivegraftError `guest-memory` where nothing is mapped. */
  readMemory(address: number, sizeBytes: number): Promise<Uint8Array>;
  writeMemory(address: number, bytes: Uint8Array): Promise<void>;
  /** The same at once, for sources that can; undefined where nothing is mapped. */
  readNow?(address: number, sizeBytes: number): Uint8Array | undefined;
  /** The guest has run. */
  forget?(): void;
}

/** Small enough for one packet of QEMU's stub, and a divisor of every page. */
const BLOCK_BYTES = 2048;
/** A read that needs more rounds than this chases a list that never ends. */
const MAX_ROUNDS = 100_000;

/**
 * Guest memory for code that reads synchronously (a stack walk): it is run against what is already known, and again
 * when the blocks that it missed have been fetched. What is known is forgotten when the guest runs.
 */
export class GuestMemory {
  readonly #source: MemorySource;
  readonly #code: MemorySource;
  /** Undefined for a block that can't be read. */
  readonly #blocks = new Map<number, Uint8Array | undefined>();
  readonly #missing = new Set<number>();
  #observer: ((address: number, sizeBytes: number) => void) | undefined;

  /** `code`: what code is written through, so that an emulator learns of it. */
  constructor(source: MemorySource, code: MemorySource = source) {
    this.#source = source;
    this.#code = code;
  }

  /** The guest has run: everything may have changed. */
  forget(): void {
    this.#blocks.clear();
    this.#source.forget?.();
  }

  /** Runs `use`, and tells `onRead` of every part of the memory that it reads. */
  async observe<T>(onRead: (address: number, sizeBytes: number) => void, use: () => Promise<T>): Promise<T> {
    this.#observer = onRead;
    try {
      return await use();
    } finally {
      this.#observer = undefined;
    }
  }

  /** Runs `attempt`, which uses {@link readInto}, until it has all it asked for. It must have no effects. */
  async settle<T>(attempt: () => T): Promise<T> {
    for (let round = 0; round < MAX_ROUNDS; round++) {
      this.#missing.clear();
      const result = attempt();
      if (this.#missing.size === 0) return result;
      await this.#fetch();
    }
    throw new LivegraftError('guest-memory', 'a structure of the guest has no end; is it still booting?');
  }

  /**
   * For use inside of {@link settle}: copies what is known and returns how many bytes from the start were.
   * Addresses beyond 2^53 must be multiples of 8 (`src/base/brand.ts`).
   */
  readInto(address: number, into: Uint8Array): number {
    this.#observer?.(address, into.length);
    let start = Math.floor(address / BLOCK_BYTES) * BLOCK_BYTES;
    let skip = address - start;
    for (let at = 0; at < into.length; start += BLOCK_BYTES) {
      const block = this.#blockAt(start);
      if (block === undefined) return at;
      const part = block.subarray(skip, skip + into.length - at);
      into.set(part, at);
      at += part.length;
      skip = 0;
    }
    return into.length;
  }

  /** For use inside of {@link settle}; undefined when not all of it is known. */
  readNow(address: number, sizeBytes: number): Uint8Array | undefined {
    const bytes = new Uint8Array(sizeBytes);
    return this.readInto(address, bytes) === sizeBytes ? bytes : undefined;
  }

  #blockAt(start: number): Uint8Array | undefined {
    const known = this.#blocks.get(start);
    if (known !== undefined || this.#blocks.has(start)) return known;
    if (this.#source.readNow === undefined) {
      this.#missing.add(start);
      return undefined;
    }
    const block = this.#source.readNow(start, BLOCK_BYTES);
    this.#blocks.set(start, block);
    return block;
  }

  /** Rejects with `guest-memory` when any byte can't be read. */
  async read(address: number, sizeBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(sizeBytes);
    const count = await this.settle(() => this.readInto(address, bytes));
    if (count < sizeBytes)
      throw new LivegraftError(
        'guest-memory',
        `${sizeBytes} bytes of guest memory at ${hex(address)} can't be read`,
      );
    return bytes;
  }

  /** Data; for code see {@link writeCode}. */
  async write(address: number, bytes: Uint8Array): Promise<void> {
    this.#drop(address, bytes.length);
    await this.#source.writeMemory(address, bytes);
  }

  async writeCode(address: number, bytes: Uint8Array): Promise<void> {
    this.#drop(address, bytes.length);
    await this.#code.writeMemory(address, bytes);
  }

  #drop(address: number, sizeBytes: number): void {
    const start = Math.floor(address / BLOCK_BYTES) * BLOCK_BYTES;
    for (let at = start; at < address + sizeBytes; at += BLOCK_BYTES) this.#blocks.delete(at);
  }

  async #fetch(): Promise<void> {
    for (const start of this.#missing) {
      try {
        this.#blocks.set(start, await this.#source.readMemory(start, BLOCK_BYTES));
      } catch (error) {
        if (!isMemoryError(error)) throw error;
        this.#blocks.set(start, undefined);
      }
    }
  }
}
