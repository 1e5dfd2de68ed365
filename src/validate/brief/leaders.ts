import type { SkimTable } from '../../arch/skim-table.js';
import { countBits } from '../position-index.js';

/**
 * Places where control may come from elsewhere than from the instruction before: one bit per byte of code while they are gathered, then in order.
 */
export class Leaders {
  count = 0;
  /** Ascending, with one behind all code. */
  positions = new Int32Array(0);
  /** By leader: the first entry of the skim at or behind it. */
  entries = new Int32Array(0);
  #bits = new Uint32Array(0);
  #before = new Int32Array(0);
  #words = 0;

  clear(sizeBytes: number): void {
    this.#words = (sizeBytes >>> 5) + 1;
    if (this.#bits.length < this.#words) {
      this.#bits = new Uint32Array(this.#words + (this.#words >> 2));
      this.#before = new Int32Array(this.#bits.length);
    } else this.#bits.fill(0, 0, this.#words);
  }

  add(position: number): void {
    this.#bits[position >>> 5] = (this.#bits[position >>> 5] as number) | (1 << (position & 31));
  }

  /** Whether each is the start of an instruction of the skim. */
  areInstructions({ starts }: SkimTable): boolean {
    for (let word = 0; word < this.#words; word++)
      if (((this.#bits[word] as number) & ~(starts[word] as number)) !== 0) return false;
    return true;
  }

  /** Puts what was gathered in order. */
  finish(skim: SkimTable): void {
    let count = 0;
    for (let word = 0; word < this.#words; word++) {
      this.#before[word] = count;
      count += countBits(this.#bits[word] as number);
    }
    this.count = count;
    if (this.positions.length <= count) {
      this.positions = new Int32Array(count + (count >> 2) + 16);
      this.entries = new Int32Array(this.positions.length);
    }
    const { positions, entries } = this;
    let leader = 0;
    for (let word = 0; word < this.#words; word++) {
      for (let bits = this.#bits[word] as number; bits !== 0; bits &= bits - 1)
        positions[leader++] = (word << 5) + 31 - Math.clz32(bits & (0 - bits));
    }
    positions[count] = 0x7fff_ffff;
    let entry = 0;
    for (let l = 0; l < count; l++) {
      const position = positions[l] as number;
      while ((skim.positions[entry] as number) < position) entry++;
      entries[l] = entry;
    }
  }

  /** The leader at a position, -1 for none. */
  find(position: number): number {
    const word = this.#bits[position >>> 5] as number;
    const bit = 1 << (position & 31);
    if ((word & bit) === 0) return -1;
    return (this.#before[position >>> 5] as number) + countBits(word & (bit - 1));
  }
}
