import { isExactAddress } from '../base/brand.js';

/** A stretch of stack read in one go; words outside of it are fetched one stretch at a time. */
export class StackWindow {
  readonly #readMemory: (address: number, into: Uint8Array) => number;
  readonly #bytes: Uint8Array;
  readonly #low: Uint32Array;
  readonly #high: Int32Array;
  #start = 0;
  #end = 0;

  /** `isNested`: others may be at work meanwhile. */
  constructor(readMemory: (address: number, into: Uint8Array) => number, isNested = false) {
    this.#readMemory = readMemory;
    const { bytes, low, high } = isNested ? makeScratch() : scratch;
    this.#bytes = bytes;
    this.#low = low;
    this.#high = high;
  }

  /** Fetches what lies from `address` up, at most to `limit`. */
  load(address: number, limit: number): void {
    const start = Math.floor(address / 8) * 8;
    const size = Math.max(0, Math.min(WINDOW_BYTES, limit - start));
    const count = size > 0 ? this.#readMemory(start, this.#bytes.subarray(0, size)) : 0;
    this.#start = start;
    this.#end = start + Math.floor(count / 8) * 8;
  }

  /** The signed number of the 8 bytes at an aligned address; undefined when it can't be read. */
  read64(address: number): number | undefined {
    if (address % 8 !== 0 || !isExactAddress(address)) return undefined;
    if (address < this.#start || address >= this.#end) {
      this.load(address, address + WINDOW_BYTES);
      if (address >= this.#end) return undefined;
    }
    const index = (address - this.#start) / 4;
    return (this.#high[index + 1] as number) * 0x1_0000_0000 + (this.#low[index] as number);
  }

  /** Whether the number at an address, just read, is odd: of one of 57 bits what {@link read64} returns does not tell. */
  isOdd(address: number): boolean {
    return ((this.#low[(address - this.#start) / 4] as number) & 1) === 1;
  }
}

const WINDOW_BYTES = 16 * 1024;

function makeScratch() {
  const buffer = new ArrayBuffer(WINDOW_BYTES);
  return { bytes: new Uint8Array(buffer), low: new Uint32Array(buffer), high: new Int32Array(buffer) };
}

// One walk at a time: shared, so that none allocates.
const scratch = makeScratch();
