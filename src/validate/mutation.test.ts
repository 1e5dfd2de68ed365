import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { mutationsOfDwarf, mutationsOfInstructions, runMutations } from '../../test/support/mutations.js';

/** A library that any system has, from a compiler, with every kind of frame. */
const LIBRARY = '/usr/lib/x86_64-linux-gnu/libz.so.1';

describe('mutations of a real library', () => {
  const bytes = new Uint8Array(readFileSync(LIBRARY));

  it.each([
    ['a CFI row', mutationsOfDwarf],
    ['a stack instruction', mutationsOfInstructions],
  ] as const)('notices a change of %s', (what, mutationsOf) => {
    const { tried, missed } = runMutations(bytes, LIBRARY, mutationsOf(bytes, LIBRARY), {
      seed: 1,
      count: 300,
    });
    const share = 1 - missed.length / tried;
    process.stdout.write(`${what}: ${tried} tried, ${(share * 100).toFixed(2)} % noticed\n`);
    for (const mutation of missed) process.stdout.write(`  missed: ${mutation}\n`);
    expect(tried).toBe(300);
    expect(share).toBeGreaterThanOrEqual(0.995);
  });
});
