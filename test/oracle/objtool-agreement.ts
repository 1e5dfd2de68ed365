import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { decompressors, sectionDecompressors } from '../../src/cli/decompressors.js';
import { readKernel } from '../../src/cli/validate-files.js';
import { parseElf } from '../../src/elf/reader.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { Scratch } from '../../src/validate/scratch.js';
import { AGREEMENT_CLASSES, classOf } from '../support/agreement-classes.js';
import {
  type AgreementCounts,
  compareWithObjtool,
  type DifferingPlace,
  NO_COUNTS,
} from '../support/orc-agreement.js';

/**
 * `npm run -s oracle:objtool -- FILE…`: modules and kernels with ORC tables; a row of the table in docs/validation-results.md for all
 * together, and behind it the places that differ by their class, most instructions first. Ends with 1 when one is in none.
 */
const total: AgreementCounts = { ...NO_COUNTS };
const byClass = new Map<string | undefined, { readonly text: string; readonly count: number }[]>();
const scratch = new Scratch();
let files = 0;
for (const file of process.argv.slice(2)) {
  const elf = parseElf(extractVmlinux(readFileSync(file), file, decompressors), file, sectionDecompressors);
  const result = compareWithObjtool(elf, scratch, readKernel(elf));
  if (result === undefined) continue;
  files++;
  for (const key of Object.keys(total) as (keyof AgreementCounts)[]) total[key] += result.counts[key];
  for (const place of result.differing) {
    const name = classOf(place);
    const known = byClass.get(name) ?? [];
    byClass.set(name, known);
    known.push({ text: textOf(file, place), count: place.count });
  }
}
const { proven, assumed, disproved, unknown, unclaimed, unreached, conflicts } = total;
const withRow = proven + assumed + disproved + unknown + unreached;
const columns = [withRow, proven + assumed, disproved, unknown, unclaimed, unreached, conflicts];
console.log(
  '| | instructions with a row | same | other | not derived | reached, no row | row, not reached | states that conflict |',
);
console.log(`| ${files} files | ${columns.map((n) => n.toLocaleString('en')).join(' | ')} |`);
console.log(`"Same" includes ${assumed} frames of saved registers.`);
for (const name of new Set([...AGREEMENT_CLASSES.map((each) => each.name), undefined])) {
  const places = byClass.get(name) ?? [];
  if (places.length === 0) continue;
  const count = places.reduce((sum, place) => sum + place.count, 0);
  console.log(`\n${name ?? 'NOT EXPLAINED'}: ${count}`);
  for (const place of places.sort((a, b) => b.count - a.count)) console.log(`  ${place.count} ${place.text}`);
}
process.exitCode = byClass.has(undefined) ? 1 : 0;

function textOf(file: string, { kind, section, function: name, behind, address }: DifferingPlace): string {
  const at = BigInt.asUintN(64, BigInt(address)).toString(16);
  return `${basename(file)} ${kind} ${section} ${name || '(no symbol)'} from ${at}, behind ${behind}`;
}
