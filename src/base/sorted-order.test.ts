import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { sortedOrder } from './sorted-order.js';

describe('sortedOrder', () => {
  const check = (keys: readonly number[]) => {
    const expected = keys.map((_, i) => i).sort((a, b) => (keys[a] as number) - (keys[b] as number) || a - b);
    expect([...sortedOrder(Float64Array.from(keys))]).toEqual(expected);
  };

  it('is a stable order, of near and of far keys', () => {
    check([]);
    check([3, 1, 2, 1, 3]);
    check([7, 8, 8, 9, 4, 5, 5, 0, 1]);
    check([7, 8, 4, 7, 0, 1]);
    check([1, 1, 0, 0, 2, 1]);
    check([-(2 ** 47), 2 ** 47, 0, -(2 ** 47)]);
    fc.assert(fc.property(fc.array(fc.integer({ min: -50, max: 50 })), check), { seed: 1 });
    fc.assert(fc.property(fc.array(fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 })), check), { seed: 2 });
    fc.assert(fc.property(fc.array(fc.maxSafeInteger()), check), { seed: 3 });
  });
});
