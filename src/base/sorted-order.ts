/** Two to this power times an index still leaves room for an exact sum with a key. */
const INDEX_BITS = 22;
const KEY_RANGE = 2 ** (53 - INDEX_BITS);

/**
 * The indexes of integer keys in ascending order of the keys; equal keys stay in their order. Sorts plain numbers where key
 * and index fit into one, which is many times faster than calling back; and not at all what is a few ascending runs one behind the
 * other, as tables of several sections are.
 */
export function sortedOrder(keys: Float64Array): Uint32Array {
  const joined = joinRuns(keys, findRuns(keys));
  if (joined !== undefined) return joined;
  let low = Number.POSITIVE_INFINITY;
  let high = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < keys.length; i++) {
    low = Math.min(low, keys[i] as number);
    high = Math.max(high, keys[i] as number);
  }
  const count = keys.length;
  if (high - low >= KEY_RANGE || count > 2 ** INDEX_BITS) {
    const order = Uint32Array.from({ length: count }, (_, i) => i);
    return order.sort((a, b) => (keys[a] as number) - (keys[b] as number) || a - b);
  }
  const scale = 2 ** INDEX_BITS;
  const packed = new Float64Array(count);
  for (let i = 0; i < count; i++) packed[i] = ((keys[i] as number) - low) * scale + i;
  packed.sort();
  const order = new Uint32Array(count);
  for (let i = 0; i < count; i++) order[i] = (packed[i] as number) % scale;
  return order;
}

/** Keys in a run, on average, from which on runs are worth looking for. */
const MIN_RUN = 32;

/** Where ascending runs of keys begin; none where there are many. */
function findRuns(keys: Float64Array): number[] {
  const starts = [0];
  for (let i = 1; i < keys.length; i++) {
    if ((keys[i] as number) >= (keys[i - 1] as number)) continue;
    if (starts.push(i) * MIN_RUN > keys.length + 64) return [];
  }
  return starts;
}

/** The order where no run reaches into another; undefined where one does. */
function joinRuns(keys: Float64Array, starts: readonly number[]): Uint32Array | undefined {
  const count = keys.length;
  if (count === 0 || starts.length === 0) return count === 0 ? new Uint32Array(0) : undefined;
  const runs = starts.map((start, n) => ({ start, end: starts[n + 1] ?? count }));
  runs.sort((a, b) => (keys[a.start] as number) - (keys[b.start] as number) || a.start - b.start);
  const order = new Uint32Array(count);
  let to = 0;
  let [last, lastIndex] = [Number.NEGATIVE_INFINITY, -1];
  for (const { start, end } of runs) {
    const first = keys[start] as number;
    if (first < last || (first === last && start < lastIndex)) return undefined;
    for (let i = start; i < end; i++) order[to++] = i;
    [last, lastIndex] = [keys[end - 1] as number, end - 1];
  }
  return order;
}
