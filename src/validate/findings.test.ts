import { describe, expect, it } from 'vitest';
import { parseSuppressions } from './findings.js';

describe('a suppression', () => {
  const names = (glob: string) => parseSuppressions(`* ${glob}`)[0]?.function as RegExp;

  it.each([
    ['f', ['f'], ['g', 'ff', '']],
    ['f*', ['f', 'fg'], ['gf']],
    ['*f', ['f', 'gf', 'ff'], ['fg']],
    ['a*b*c', ['abc', 'a_b_c', 'abbcc', 'abcbc'], ['acb', 'ab', 'abcd']],
    ['*1*2*', ['12', 'x1y2z'], ['21']],
    ['**', ['', 'f'], []],
    ['*aba*ba', ['ababa', 'xabaxba'], ['abax', 'aba']],
    ['f.cold$(x)[0]', ['f.cold$(x)[0]'], ['fxcold$(x)[0]']],
  ])('names with %s what a shell would', (glob, those, others) => {
    for (const name of those) expect([name, names(glob).test(name)]).toEqual([name, true]);
    for (const name of others) expect([name, names(glob).test(name)]).toEqual([name, false]);
  });

  it('of many stars is told from a name that it does not fit at once', () => {
    const started = performance.now();
    expect(names('*a'.repeat(40)).test(`${'a'.repeat(200)}b`)).toBe(false);
    expect(performance.now() - started).toBeLessThan(1000);
  });
});
