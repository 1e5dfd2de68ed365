/** How often a refused task is tried again. */
export interface RetryPolicy {
  readonly firstMs: number;
  readonly factor: number;
  readonly longestMs: number;
}

/** The delay behind one of `delayMs`. */
export function nextDelay({ factor, longestMs }: RetryPolicy, delayMs: number): number {
  return Math.min(delayMs * factor, longestMs);
}

/** When something is due next: at once at first, then after ever longer delays. A function of the clock alone. */
export class Backoff {
  readonly #policy: RetryPolicy;
  #dueMs: number;
  #delayMs: number;

  constructor(policy: RetryPolicy, nowMs: number) {
    this.#policy = policy;
    this.#dueMs = nowMs;
    this.#delayMs = policy.firstMs;
  }

  get dueMs(): number {
    return this.#dueMs;
  }

  postpone(nowMs: number): void {
    this.#dueMs = nowMs + this.#delayMs;
    this.#delayMs = nextDelay(this.#policy, this.#delayMs);
  }

  makeDue(nowMs: number): void {
    this.#dueMs = nowMs;
  }
}
