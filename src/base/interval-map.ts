/** Disjoint half-open ranges `[start, end)` with a value each, found by binary search. Built once, then read. */
export class IntervalMap<T> {
  readonly #starts: Float64Array;
  readonly #ends: Float64Array;
  readonly #values: readonly T[];

  /** Throws a RangeError when two ranges overlap or one is reversed; empty ranges are dropped. */
  constructor(entries: Iterable<{ readonly start: number; readonly end: number; readonly value: T }>) {
    const sorted = [...entries].filter((e) => e.start !== e.end).sort((a, b) => a.start - b.start);
    this.#starts = Float64Array.from(sorted, (e) => e.start);
    this.#ends = Float64Array.from(sorted, (e) => e.end);
    this.#values = sorted.map((e) => e.value);
    for (let i = 0; i < sorted.length; i++) {
      const start = this.#starts[i] as number;
      if ((this.#ends[i] as number) < start) throw new RangeError(`range at ${start} is reversed`);
      if (i > 0 && (this.#ends[i - 1] as number) > start) throw new RangeError(`ranges overlap at ${start}`);
    }
  }

  get size(): number {
    return this.#values.length;
  }

  find(position: number): T | undefined {
    const index = this.findIndex(position);
    return index < 0 ? undefined : this.#values[index];
  }

  /** The index of the range that holds `position`, or -1. */
  findIndex(position: number): number {
    let low = 0;
    let high = this.#starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#starts[middle] as number) <= position) low = middle + 1;
      else high = middle;
    }
    const index = low - 1;
    return index >= 0 && position < (this.#ends[index] as number) ? index : -1;
  }

  *[Symbol.iterator](): IterableIterator<{ start: number; end: number; value: T }> {
    for (let i = 0; i < this.#values.length; i++) {
      yield {
        start: this.#starts[i] as number,
        end: this.#ends[i] as number,
        value: this.#values[i] as T,
      };
    }
  }
}
