/** Two to this power times an index still leaves room for an exact sum with a key. */
const INDEX_BITS = 22;
const KEY_RANGE = 2 ** (53 - INDEX_BITS);

/**
 * The indexes of integer keys in ascending order of the keys; equal keys stay in their order. Sorts plain numbers where key
 * and index fit into one, which is many times faster than calling back.
 */
export function sortedOrder(keys: Float64Array): Uint32Array {
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
