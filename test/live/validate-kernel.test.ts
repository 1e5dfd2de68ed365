import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import type { ElfFile } from '../../src/elf/elf-file.js';
import { parseElf } from '../../src/elf/reader.js';
import { validateBriefly } from '../../src/validate/brief/validate-brief.js';
import { CodeSpace } from '../../src/validate/code-space.js';
import { encodeProof } from '../../src/validate/proof.js';
import { Scratch } from '../../src/validate/scratch.js';
import { validateElf } from '../../src/validate/validate-file.js';
import { classOf } from '../support/agreement-classes.js';
import { fetchKernel } from '../support/guest.js';
import { mutationsOf, runMutations } from '../support/mutations.js';
import { compareWithObjtool, NO_COUNTS } from '../support/orc-agreement.js';

/** Debian's cloud kernel modules: their ORC tables are objtool's, and ours must say the same from the code alone. */
let modules: string[];
beforeAll(() => {
  const folder = fetchKernel().modules;
  modules = readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ko'))
    .map((file) => join(folder, file))
    .sort((a, b) => statSync(b).size - statSync(a).size || (a < b ? -1 : 1));
}, 300_000);

const scratch = new Scratch();

/** All that a validation says of a file, with the proof that is kept. */
function resultsOf(elf: ElfFile, tryBrief: boolean) {
  const result = validateElf(elf, { architecture: x86_64, scratch, tryBrief });
  return {
    counts: result.sources.map(({ counts }) => counts),
    statuses: result.sources.map(({ statuses }) => Buffer.from(statuses).toString('latin1')),
    findings: result.findings,
    jumpTables: result.jumpTables,
    instructions: result.instructions,
    textBytes: result.textBytes,
    proof: Buffer.from(encodeProof(result, 'orc') ?? []).toString('latin1'),
  };
}

describe('objtool’s tables of kernel modules', () => {
  it('are what the code alone says, but for what docs/validation-results.md explains', () => {
    const total = { ...NO_COUNTS };
    // The largest, and every fifth of the others: all are in the document's table.
    const chosen = modules.filter((_, i) => i < 20 || i % 5 === 0);
    for (const path of chosen) {
      const result = compareWithObjtool(parseElf(readFileSync(path), path), scratch);
      if (result === undefined) continue;
      for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += result.counts[key];
      const unexplained = result.differing.filter((place) => classOf(place) === undefined);
      expect([path.replace(/^.*\//, ''), unexplained]).toEqual([path.replace(/^.*\//, ''), []]);
    }
    process.stdout.write(`${chosen.length} modules: ${JSON.stringify(total)}\n`);
    expect(total.proven).toBeGreaterThan(1_000_000);
    const others = total.disproved + total.unknown + total.unclaimed + total.unreached;
    expect(others / total.proven).toBeLessThan(0.0005);
  });

  it('are proven by frames alone as by all registers, place by place', () => {
    let briefly = 0;
    const chosen = modules.filter((_, i) => i < 20 || i % 8 === 0);
    for (const path of chosen) {
      const elf = parseElf(readFileSync(path), path);
      if (validateBriefly(elf, CodeSpace.of(elf, scratch), { architecture: x86_64, scratch }) !== undefined)
        briefly++;
      expect(resultsOf(elf, true)).toEqual(resultsOf(elf, false));
    }
    expect(briefly / chosen.length).toBeGreaterThan(0.95);
  });

  it('come to the same by frames alone as by all registers when something is wrong with them', () => {
    const path = modules.find((file) => statSync(file).size < 60_000) as string;
    const original = new Uint8Array(readFileSync(path));
    const bytes = original.slice();
    const mutations = mutationsOf(bytes, path).flatMap((each) => each.mutations);
    for (const { at, value, what } of mutations.filter(
      (_, i) => i % Math.ceil(mutations.length / 300) === 0,
    )) {
      bytes[at] = value;
      const elf = parseElf(bytes, path);
      expect([what, resultsOf(elf, true)]).toEqual([what, resultsOf(elf, false)]);
      bytes[at] = original[at] as number;
    }
  });

  it.each([
    // Some 40 kB: small enough to be validated hundreds of times.
    { what: 'a small one', find: (sizeBytes: number) => sizeBytes < 120_000, count: 400 },
    { what: 'one of some hundred kB', find: (sizeBytes: number) => sizeBytes < 700_000, count: 40 },
    { what: 'the largest', find: () => true, count: 15 },
  ])('are noticed to be wrong after a change of $what', ({ find, count }) => {
    const path = modules.find((file) => find(statSync(file).size)) as string;
    const bytes = new Uint8Array(readFileSync(path));
    for (const { what, mutations } of mutationsOf(bytes, path)) {
      const { tried, missed } = runMutations(bytes, path, mutations, { seed: 2, count });
      const share = 1 - missed.length / tried;
      process.stdout.write(
        `${path.replace(/^.*\//, '')}, ${what}: ${tried} tried, ${(share * 100).toFixed(2)} % noticed\n`,
      );
      for (const mutation of missed) process.stdout.write(`  missed: ${mutation}\n`);
      expect(tried).toBe(Math.min(count, mutations.length));
      expect(share).toBeGreaterThanOrEqual(0.995);
    }
  });
});
