/** Unreliable walks of one kind: the reason, and the innermost function that the walk could not get past. */
export interface SoakFinding {
  readonly cause: string;
  readonly place: string;
  readonly count: number;
  /** Of the first one. */
  readonly detail: string;
}

/** What ended it: enough walks, the time, the caller, or the end of the target (of its program, with `exec`). */
export type SoakEnd = 'count' | 'time' | 'interrupt' | 'exit' | 'exec';

export interface SoakReport {
  /** Stacks that were walked: at context switches of a kernel; at system-call stops and random instants of a process. */
  readonly switches: number;
  readonly unreliable: number;
  readonly findings: readonly SoakFinding[];
  /** Tasks whose stacks were walked, kernel threads among them. */
  readonly tasks: number;
  readonly kthreads: number;
  /** Names of kernel threads with an unreliable walk. */
  readonly unreliableKthreads: readonly string[];
  /** How many of the walks were at random instants. */
  readonly instants: number;
  readonly endedBy: SoakEnd;
  readonly durationMs: number;
}

export interface SoakOptions {
  /** How many walks, at least. */
  readonly switches: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  readonly onProgress: (switches: number, unreliable: number) => void;
}

type Walk =
  | { readonly reliable: true }
  | { readonly reliable: false; readonly reason: { readonly code: string; readonly detail: string } };

/** Counts walks, and what was wrong with them by cause and place. */
export class SoakCount {
  readonly #options: SoakOptions;
  readonly #startMs = performance.now();
  readonly #findings = new Map<string, { cause: string; place: string; count: number; detail: string }>();
  readonly #tasks = new Map<number, boolean>();
  readonly #unreliableKthreads = new Set<string>();
  #switches = 0;
  #unreliable = 0;
  #instants = 0;

  constructor(options: SoakOptions) {
    this.#options = options;
  }

  /** `task` is told from all others by that number; `place` is asked for only when the walk is unreliable. */
  note(
    task: number,
    kind: { readonly isKthread?: boolean; readonly isInstant?: boolean; readonly name?: string },
    walk: Walk,
    place: () => string,
  ): void {
    this.#tasks.set(task, kind.isKthread === true);
    this.#switches++;
    if (kind.isInstant === true) this.#instants++;
    if (!walk.reliable) this.#noteUnreliable(walk.reason, place());
    if (!walk.reliable && kind.isKthread === true && kind.name !== undefined)
      this.#unreliableKthreads.add(kind.name);
    if (this.#switches % PROGRESS_EVERY === 0) this.#options.onProgress(this.#switches, this.#unreliable);
  }

  #noteUnreliable({ code, detail }: { readonly code: string; readonly detail: string }, place: string): void {
    this.#unreliable++;
    const key = `${code} ${place}`;
    const known = this.#findings.get(key);
    if (known === undefined) this.#findings.set(key, { cause: code, place, count: 1, detail });
    else known.count++;
  }

  leftMs(): number {
    return this.#options.timeoutMs - (performance.now() - this.#startMs);
  }

  /** Undefined while it is to go on. */
  end(): SoakEnd | undefined {
    if (this.#switches >= this.#options.switches) return 'count';
    if (this.#options.signal.aborted) return 'interrupt';
    return this.leftMs() <= 0 ? 'time' : undefined;
  }

  report(endedBy: SoakEnd): SoakReport {
    return {
      switches: this.#switches,
      unreliable: this.#unreliable,
      findings: [...this.#findings.values()].sort((a, b) => b.count - a.count),
      tasks: this.#tasks.size,
      kthreads: [...this.#tasks.values()].filter(Boolean).length,
      unreliableKthreads: [...this.#unreliableKthreads],
      instants: this.#instants,
      endedBy,
      durationMs: performance.now() - this.#startMs,
    };
  }
}

const PROGRESS_EVERY = 1000;
