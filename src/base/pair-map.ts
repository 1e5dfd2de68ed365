const EMPTY = -1;

/** From two 32-bit numbers to a third that is not negative, in typed arrays: for hot loops that would make a string or an object of a key. */
export class PairMap {
  #keys = new Int32Array(2 << 10);
  #values = new Int32Array(1 << 10).fill(EMPTY);
  #count = 0;

  /** -1 for none. */
  get(first: number, second: number): number {
    return this.#values[this.#slotOf(first, second)] as number;
  }

  set(first: number, second: number, value: number): void {
    if (this.#count * 2 >= this.#values.length) this.#grow();
    const slot = this.#slotOf(first, second);
    if (this.#values[slot] === EMPTY) this.#count++;
    this.#keys[2 * slot] = first;
    this.#keys[2 * slot + 1] = second;
    this.#values[slot] = value;
  }

  /** Where the pair lies, or would lie. */
  #slotOf(first: number, second: number): number {
    const keys = this.#keys;
    const values = this.#values;
    const mask = values.length - 1;
    const hash = Math.imul(first, 0x9e3779b1) ^ Math.imul(second, 0x85ebca6b);
    let slot = (hash ^ (hash >>> 15)) & mask;
    while (values[slot] !== EMPTY && (keys[2 * slot] !== first || keys[2 * slot + 1] !== second))
      slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const [keys, values] = [this.#keys, this.#values];
    this.#keys = new Int32Array(keys.length * 2);
    this.#values = new Int32Array(values.length * 2).fill(EMPTY);
    this.#count = 0;
    for (let slot = 0; slot < values.length; slot++) {
      if (values[slot] !== EMPTY)
        this.set(keys[2 * slot] as number, keys[2 * slot + 1] as number, values[slot] as number);
    }
  }
}
