import { describe, expect, it } from 'vitest';
import { findStateConflict } from './states.js';

const patch = (replaces: boolean, ...states: { id: number; version: number }[]) => ({ replaces, states });
const enabled = (name: string, ...states: { id: number; version: number }[]) => ({ name, states });

describe('system states', () => {
  it('the same version or a newer one may follow, with or without replacing', () => {
    for (const replaces of [false, true]) {
      for (const version of [2, 3])
        expect(
          findStateConflict(patch(replaces, { id: 1, version }), [enabled('a', { id: 1, version: 2 })]),
        ).toBeUndefined();
    }
  });

  it('an older version is refused', () => {
    for (const replaces of [false, true]) {
      expect(
        findStateConflict(patch(replaces, { id: 1, version: 1 }), [enabled('a', { id: 1, version: 2 })]),
      ).toEqual({
        enabled: 'a',
        id: 1,
        enabledVersion: 2,
        version: 1,
      });
    }
  });

  it('one that replaces must know every state of the others; one that is stacked need not', () => {
    const others = [enabled('a'), enabled('b', { id: 7, version: 1 })];
    expect(findStateConflict(patch(false), others)).toBeUndefined();
    expect(findStateConflict(patch(true, { id: 1, version: 9 }), others)).toEqual({
      enabled: 'b',
      id: 7,
      enabledVersion: 1,
      version: undefined,
    });
  });
});
