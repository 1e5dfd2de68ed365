/**
 * What a {@link DueQueue} keeps in its things. It is the queue's alone to change; one thing is in one queue at a time.
 */
export interface Queued {
  dueMs: number;
  order: number;
  /** In the heap; {@link NOT_QUEUED} while it is in no queue. */
  place: number;
}

const NOT_QUEUED = -1;

/** To be spread into a thing that is in no queue yet. */
export const UNQUEUED: Readonly<Queued> = { dueMs: 0, order: 0, place: NOT_QUEUED };

/**
 * A set of things, each with a time at which it is due: a binary heap, whose places are kept in the things themselves, so that
 * membership needs no look-up, and a change costs the logarithm of the size. Among things that are due at one time, the one
 * that was added first leads.
 */
export class DueQueue<T extends Queued> {
  readonly #heap: T[] = [];
  #added = 0;

  get size(): number {
    return this.#heap.length;
  }

  /** Infinity when nothing is in it. */
  get earliestMs(): number {
    return this.#heap[0]?.dueMs ?? Number.POSITIVE_INFINITY;
  }

  has(value: T): boolean {
    return value.place !== NOT_QUEUED;
  }

  /** Adds a thing, or changes when it is due. */
  set(value: T, dueMs: number): void {
    value.dueMs = dueMs;
    if (!this.has(value)) {
      value.order = this.#added++;
      value.place = this.#heap.length;
      this.#heap.push(value);
    }
    this.#settle(value);
  }

  delete(value: T): void {
    if (!this.has(value)) return;
    const { place } = value;
    value.place = NOT_QUEUED;
    const last = this.#heap.pop() as T;
    if (last === value) return;
    this.#put(last, place);
    this.#settle(last);
  }

  clear(): void {
    for (const value of this.#heap) value.place = NOT_QUEUED;
    this.#heap.length = 0;
  }

  /** What is due at `nowMs`, the longest due first. It stays in the queue. Costs nothing for what is not due. */
  due(nowMs: number): T[] {
    const found: T[] = [];
    const look = [0];
    for (let at = look.pop(); at !== undefined; at = look.pop()) {
      const value = this.#heap[at];
      if (value === undefined || value.dueMs > nowMs) continue;
      found.push(value);
      look.push(2 * at + 1, 2 * at + 2);
    }
    return found.sort((a, b) => (isBefore(a, b) ? -1 : 1));
  }

  #settle(value: T): void {
    while (value.place > 0) {
      const parent = this.#heap[(value.place - 1) >> 1] as T;
      if (!isBefore(value, parent)) break;
      this.#swap(value, parent);
    }
    for (;;) {
      const left = this.#heap[2 * value.place + 1];
      const right = this.#heap[2 * value.place + 2];
      const child = right !== undefined && left !== undefined && isBefore(right, left) ? right : left;
      if (child === undefined || !isBefore(child, value)) return;
      this.#swap(value, child);
    }
  }

  #swap(a: T, b: T): void {
    const { place } = a;
    this.#put(a, b.place);
    this.#put(b, place);
  }

  #put(value: T, place: number): void {
    this.#heap[place] = value;
    value.place = place;
  }
}

function isBefore(a: Queued, b: Queued): boolean {
  return a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);
}
