/**
 * A set of things, each with a time at which it is due: a binary heap with an index, so that membership is one look-up,
 * and a change costs the logarithm of the size. Among things that are due at one time, the one that was added first leads.
 */
export class DueQueue<T> {
  readonly #heap: Item<T>[] = [];
  readonly #items = new Map<T, Item<T>>();
  #added = 0;

  get size(): number {
    return this.#heap.length;
  }

  /** Infinity when nothing is in it. */
  get earliestMs(): number {
    return this.#heap[0]?.dueMs ?? Number.POSITIVE_INFINITY;
  }

  has(value: T): boolean {
    return this.#items.has(value);
  }

  /** Adds a thing, or changes when it is due. */
  set(value: T, dueMs: number): void {
    let item = this.#items.get(value);
    if (item === undefined) {
      item = { value, dueMs, order: this.#added++, at: this.#heap.length };
      this.#items.set(value, item);
      this.#heap.push(item);
    } else item.dueMs = dueMs;
    this.#settle(item);
  }

  delete(value: T): void {
    const item = this.#items.get(value);
    if (item === undefined) return;
    this.#items.delete(value);
    const last = this.#heap.pop() as Item<T>;
    if (last === item) return;
    this.#put(last, item.at);
    this.#settle(last);
  }

  clear(): void {
    this.#heap.length = 0;
    this.#items.clear();
  }

  /** What is due at `nowMs`, the longest due first. It stays in the queue. Costs nothing for what is not due. */
  due(nowMs: number): T[] {
    const found: Item<T>[] = [];
    const look = [0];
    for (let at = look.pop(); at !== undefined; at = look.pop()) {
      const item = this.#heap[at];
      if (item === undefined || item.dueMs > nowMs) continue;
      found.push(item);
      look.push(2 * at + 1, 2 * at + 2);
    }
    return found.sort((a, b) => (isBefore(a, b) ? -1 : 1)).map((item) => item.value);
  }

  #settle(item: Item<T>): void {
    while (item.at > 0) {
      const parent = this.#heap[(item.at - 1) >> 1] as Item<T>;
      if (!isBefore(item, parent)) break;
      this.#swap(item, parent);
    }
    for (;;) {
      const left = this.#heap[2 * item.at + 1];
      const right = this.#heap[2 * item.at + 2];
      const child = right !== undefined && left !== undefined && isBefore(right, left) ? right : left;
      if (child === undefined || !isBefore(child, item)) return;
      this.#swap(item, child);
    }
  }

  #swap(a: Item<T>, b: Item<T>): void {
    const at = a.at;
    this.#put(a, b.at);
    this.#put(b, at);
  }

  #put(item: Item<T>, at: number): void {
    this.#heap[at] = item;
    item.at = at;
  }
}

interface Item<T> {
  readonly value: T;
  dueMs: number;
  readonly order: number;
  /** Its place in the heap. */
  at: number;
}

function isBefore<T>(a: Item<T>, b: Item<T>): boolean {
  return a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);
}
