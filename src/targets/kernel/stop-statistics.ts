/** How long the guest stood still, stop by stop: from the stub's word that it has stopped until it may go on. */
export interface StopStatistics {
  readonly stops: number;
  readonly longestMs: number;
  readonly totalMs: number;
  /** How many took longer than {@link LONG_STOP_MS}. */
  readonly longStops: number;
}

const LONG_STOP_MS = 2;

export const NO_STOPS: StopStatistics = { stops: 0, longestMs: 0, totalMs: 0, longStops: 0 };

export function addStop(
  { stops, longestMs, totalMs, longStops }: StopStatistics,
  ms: number,
): StopStatistics {
  return {
    stops: stops + 1,
    longestMs: Math.max(longestMs, ms),
    totalMs: totalMs + ms,
    longStops: longStops + (ms > LONG_STOP_MS ? 1 : 0),
  };
}
