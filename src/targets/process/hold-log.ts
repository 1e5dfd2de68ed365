/** For how long threads are held without a word about it: what a short stack's check takes (bench/README.md). */
const TOLD_ABOVE_MS = 0.5;

interface Hold {
  readonly ms: number;
  readonly ownMs: number;
  readonly threads: string;
  readonly why: string;
}

/** When a hold began, by the clock and by this process's own time on a processor. */
export interface HoldStart {
  readonly atMs: number;
  readonly ownMs: number;
}

export function beginHold(): HoldStart {
  return { atMs: performance.now(), ownMs: ownMs() };
}

/** How long a transition held threads, and why: of each kind of stop the longest one. */
export class HoldLog {
  readonly #longest = new Map<string, Hold>();

  /** The threads run again. `threads` and `why` complete "… held for N ms while …". One hold of each `kind` is told, the longest. */
  end(kind: string, start: HoldStart, threads: () => string, why: () => string): void {
    this.add(kind, performance.now() - start.atMs, threads, why, start.ownMs);
  }

  /** The same for a hold that took so long, by the processor's time when it began where that is known. */
  add(kind: string, ms: number, threads: () => string, why: () => string, fromOwnMs?: number): void {
    if (ms < TOLD_ABOVE_MS || ms <= (this.#longest.get(kind)?.ms ?? 0)) return;
    const own = fromOwnMs === undefined ? ms : ownMs() - fromOwnMs;
    this.#longest.set(kind, { ms, ownMs: own, threads: threads(), why: why() });
  }

  /** One sentence each, the longest hold first. */
  texts(): readonly string[] {
    const holds = [...this.#longest.values()].sort((a, b) => b.ms - a.ms);
    return holds.map(({ ms, ownMs, threads, why }) => {
      const isStarved = ownMs < ms / 2 && ms - ownMs > TOLD_ABOVE_MS;
      const starved = isStarved ? `; livegraft had a processor for ${ownMs.toFixed(1)} ms of that` : '';
      return `${threads} held for ${ms.toFixed(1)} ms while ${why}${starved}`;
    });
  }
}

function ownMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}
