/**
 * Every choice of a schedule comes from here: from a seed, or from a list, behind whose end everything is 0. What is
 * chosen by 0 is the simplest there is (the first task, a return, no accident), so that a failing schedule shrinks by
 * shortening and zeroing its list.
 */
export class Choices {
  readonly #draw: () => number;
  #count = 0;

  private constructor(draw: () => number) {
    this.#draw = draw;
  }

  static ofSeed(seed: number): Choices {
    return new Choices(mulberry32(seed));
  }

  static ofList(list: readonly number[]): Choices {
    let at = 0;
    return new Choices(() => list[at++] ?? 0);
  }

  /** How many have been drawn. */
  get count(): number {
    return this.#count;
  }

  /** In [0, 1). */
  next(): number {
    this.#count += 1;
    return this.#draw();
  }

  below(limit: number): number {
    return Math.floor(this.next() * limit);
  }

  chance(probability: number): boolean {
    return this.next() >= 1 - probability;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }
}

/** The first `count` choices of a seed. */
export function choicesOfSeed(seed: number, count: number): number[] {
  const draw = mulberry32(seed);
  return Array.from({ length: count }, draw);
}

/** Small, fast and the same everywhere. */
function mulberry32(seed: number): () => number {
  // Neighbouring seeds must not begin alike.
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
