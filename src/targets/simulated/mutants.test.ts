import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compileSimulation, runCompiled } from '../../../test/simulation/compile.js';
import { MUTANTS, type Mutant } from '../../../test/simulation/mutants.js';
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

  it('fails again from its seed alone, and is told in a few steps that break the same promise', async () => {
    const mutant = MUTANTS.find(({ name }) => name === 'looks-at-the-innermost-frame') as Mutant;
    const script = await compileSimulation(mutant);
    const { failed } = await runCompiled(script, { firstSeed: 1, schedules: SCHEDULES });
    if (failed === undefined) throw new Error('not caught');
    const again = await runCompiled(script, { firstSeed: failed.seed, schedules: 1, explains: true });
    expect(again.failed).toEqual(failed);
    const { shrunk } = again;
    if (shrunk === undefined) throw new Error('not shrunk');
    const promise = (violation: string) => violation.replace(/ \w+@.*/, '');
    expect(promise(shrunk.violation)).toBe(promise(failed.violation));
    expect(shrunk.choices).toBeLessThan(failed.choices);
    expect(shrunk.steps.at(-1)).toMatch(/^livegraft: switches task \d+/);
    const [, task] = /switches task (\d+)/.exec(shrunk.steps.at(-1) ?? '') ?? [];
    expect(shrunk.violation).toContain(`task ${task} `);
  });

  it('stands in the table of the documentation, with its rule', () => {
    const text = readFileSync(join(ROOT, 'docs/simulation.md'), 'utf8');
    const rows = [...text.matchAll(/^\| `([\w-]+)` \| `([\w/.-]+)` \| (.+?) \|/gm)];
    expect(rows.map(([, name, file, breaks]) => ({ name, file, breaks }))).toEqual(
      MUTANTS.map(({ name, file, breaks }) => ({ name, file, breaks })),
    );
  });
});
