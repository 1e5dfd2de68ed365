import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { decompressors, sectionDecompressors } from '../../src/cli/decompressors.js';
import { readKernel } from '../../src/cli/validate-files.js';
import { parseElf } from '../../src/elf/reader.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { Scratch } from '../../src/validate/scratch.js';
import { type AgreementCounts, compareWithObjtool, NO_COUNTS } from '../support/orc-agreement.js';

/**
 * `npm run -s oracle:objtool -- FILE…`: modules and kernels with ORC tables; a row of the table in docs/validation-results.md for all
 * together, and behind it the places that differ, most instructions first.
 */
const total: AgreementCounts = { ...NO_COUNTS };
const differing: { readonly text: string; readonly count: number }[] = [];
const scratch = new Scratch();
let files = 0;
for (const file of process.argv.slice(2)) {
  const elf = parseElf(extractVmlinux(readFileSync(file), file, decompressors), file, sectionDecompressors);
  const result = compareWithObjtool(elf, scratch, readKernel(elf));
  if (result === undefined) continue;
  files++;
  for (const key of Object.keys(total) as (keyof AgreementCounts)[]) total[key] += result.counts[key];
  for (const [place, count] of result.differing)
    differing.push({ text: `${basename(file)} ${place}`, count });
}
const { proven, assumed, disproved, unknown, unclaimed, unreached, conflicts } = total;
const withRow = proven + assumed + disproved + unknown + unreached;
const columns = [withRow, proven + assumed, disproved, unknown, unclaimed, unreached, conflicts];
console.log(
  '| | instructions with a row | same | other | not derived | reached, no row | row, not reached | states that conflict |',
);
console.log(`| ${files} files | ${columns.map((n) => n.toLocaleString('en')).join(' | ')} |`);
console.log(`"Same" includes ${assumed} frames of saved registers.`);
differing.sort((a, b) => b.count - a.count);
for (const { text, count } of differing) console.log(`${count} ${text}`);
