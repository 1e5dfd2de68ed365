import type { InstructionTable } from '../arch/instruction-table.js';
import type { Scratch } from './scratch.js';

/** From the position of an instruction to its index: a bit per byte of code, and counts of the bits before. */
export class PositionIndex {
  readonly #bits: Uint32Array;
  readonly #before: Int32Array;
  readonly #size: number;
  readonly #count: number;

  constructor(table: InstructionTable, sizeBytes: number, scratch: Scratch) {
    const words = (sizeBytes >>> 5) + 1;
    this.#count = table.count;
    this.#size = sizeBytes;
    this.#bits = scratch.uint32('position bits', words);
    this.#before = scratch.int32('position ranks', words, 0);
    const { offsets, count } = table;
    const bits = this.#bits;
    for (let i = 0; i < count; i++) {
      const position = offsets[i] as number;
      bits[position >>> 5] = (bits[position >>> 5] as number) | (1 << (position & 31));
    }
    let sum = 0;
    for (let word = 0; word < words; word++) {
      this.#before[word] = sum;
      sum += countBits(bits[word] as number);
    }
  }

  /** The index of the instruction that starts at a position, -1 when none does. */
  find(position: number): number {
    if (position < 0 || position >= this.#size) return -1;
    const word = this.#bits[position >>> 5] as number;
    const bit = 1 << (position & 31);
    if ((word & bit) === 0) return -1;
    return (this.#before[position >>> 5] as number) + countBits(word & (bit - 1));
  }

  /** How many instructions start before a position: the index of the first one at or behind it. */
  rank(position: number): number {
    if (position <= 0) return 0;
    if (position >= this.#size) return this.#count;
    const word = this.#bits[position >>> 5] as number;
    return (this.#before[position >>> 5] as number) + countBits(word & ((1 << (position & 31)) - 1));
  }
}

/** Hacker's Delight, 5-1. */
export function countBits(word: number): number {
  let x = word - ((word >>> 1) & 0x55555555);
  x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  x = (x + (x >>> 4)) & 0x0f0f0f0f;
  return Math.imul(x, 0x01010101) >>> 24;
}

/** The first index whose value is at least `value`. */
export function lowerBound(values: Int32Array, count: number, value: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] as number) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}
