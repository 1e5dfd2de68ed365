import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compileSimulation, runCompiled } from '../../../test/simulation/compile.js';
import { MUTANTS } from '../../../test/simulation/mutants.js';
import { ROOT } from '../../../test/support/live.js';

/** Every mutant is caught well before the schedules of `npm test` are through. */
const SCHEDULES = 20_000;

describe('a broken engine or target', () => {
  it.each(MUTANTS)('$name is caught', async (mutant) => {
    const outcome = await runCompiled(await compileSimulation(mutant), {
      firstSeed: 1,
      schedules: SCHEDULES,
    });
    expect(outcome.failed?.violation).toMatch(/./);
  });

  it('stands in the table of the documentation, with its rule', () => {
    const text = readFileSync(join(ROOT, 'docs/simulation.md'), 'utf8');
    const rows = [...text.matchAll(/^\| `([\w-]+)` \| `([\w/.-]+)` \| (.+?) \|/gm)];
    expect(rows.map(([, name, file, breaks]) => ({ name, file, breaks }))).toEqual(
      MUTANTS.map(({ name, file, breaks }) => ({ name, file, breaks })),
    );
  });
});
