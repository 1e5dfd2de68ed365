import { expect, it } from 'vitest';
import { PairMap } from './pair-map.js';

it('keeps what a map by strings keeps', () => {
  const pairs = new PairMap();
  const wanted = new Map<string, number>();
  let seed = 7;
  const next = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % below;
  };
  for (let i = 0; i < 20_000; i++) {
    const [first, second] = [next(300) - 150, next(300) - 150];
    expect(pairs.get(first, second)).toBe(wanted.get(`${first},${second}`) ?? -1);
    const value = next(1000);
    pairs.set(first, second, value);
    wanted.set(`${first},${second}`, value);
  }
  for (const [key, value] of wanted) {
    const [first, second] = key.split(',').map(Number) as [number, number];
    expect(pairs.get(first, second)).toBe(value);
  }
});
