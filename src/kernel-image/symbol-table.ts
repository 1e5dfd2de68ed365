/** Symbols of a kernel or module by address and by name. Addresses are signed numbers (`src/base/brand.ts`). */
export interface KernelSymbol {
  readonly name: string;
  /** The letter that `nm` and /proc/kallsyms print; lower case for a local symbol. */
  readonly type: string;
  readonly address: number;
  /** Up to the next symbol at another address, as kallsyms counts; 0 for the last. */
  readonly sizeBytes: number;
}

export class KernelSymbolTable {
  readonly #names: readonly string[];
  readonly #types: string;
  readonly #addresses: Float64Array;
  #byName: Map<string, number[]> | undefined;

  /** In kallsyms order: by address, so that the positions of same-named symbols are the kernel's `sympos`. */
  constructor(names: readonly string[], types: string, addresses: Float64Array) {
    this.#names = names;
    this.#types = types;
    this.#addresses = addresses;
  }

  get size(): number {
    return this.#names.length;
  }

  at(index: number): KernelSymbol {
    const address = this.#addresses[index] as number;
    let next = index + 1;
    while (next < this.#addresses.length && this.#addresses[next] === address) next++;
    return {
      name: this.#names[index] as string,
      type: this.#types.charAt(index),
      address,
      sizeBytes: next < this.#addresses.length ? (this.#addresses[next] as number) - address : 0,
    };
  }

  /** All symbols of that name, by address: the n-th (from 1) has `sympos` n. */
  findAll(name: string): readonly KernelSymbol[] {
    if (this.#byName === undefined) {
      this.#byName = new Map();
      for (const [index, each] of this.#names.entries()) {
        const known = this.#byName.get(each);
        if (known === undefined) this.#byName.set(each, [index]);
        else known.push(index);
      }
    }
    return (this.#byName.get(name) ?? []).map((index) => this.at(index));
  }

  /** The one symbol of that name; undefined when there is none or more than one. */
  findUnique(name: string): KernelSymbol | undefined {
    const all = this.findAll(name);
    return all.length === 1 ? all[0] : undefined;
  }

  /** The symbol that covers an address; of several at one address the first global one. */
  findCovering(address: number): KernelSymbol | undefined {
    let low = 0;
    let high = this.#addresses.length;
    // Kernel addresses are negative: they come behind the per-CPU ones in unsigned order.
    const isBehind = (at: number) => (at < 0 === address < 0 ? at > address : at < 0);
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (isBehind(this.#addresses[middle] as number)) high = middle;
      else low = middle + 1;
    }
    let index = low - 1;
    if (index < 0) return undefined;
    const start = this.#addresses[index] as number;
    while (index > 0 && this.#addresses[index - 1] === start) index--;
    for (let i = index; this.#addresses[i] === start; i++) {
      const letter = this.#types.charAt(i);
      if (letter !== letter.toLowerCase()) return this.at(i);
    }
    return this.at(index);
  }
}
