import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual, parseArgs } from 'node:util';
import { Scratch } from '../../src/validate/scratch.js';
import {
  COMPILED_FILES,
  type CompilerEntry,
  describeCompiled,
  readSnapshot,
  SNAPSHOT,
  UNEXPLAINED,
} from '../support/compiler-findings.js';

/**
 * `npm run -s oracle:compilers`: the rows of the tables of compilers' files in docs/validation-results.md, and each finding under its
 * cause. Ends with 1 when a file of a known build is not as it is written down there and in `compiler-findings.json`, or when a finding
 * has no cause. `--update` writes that file anew; the tables are for people to change.
 */
const { values } = parseArgs({ options: { update: { type: 'boolean', default: false } } });
const manual = readFileSync(
  fileURLToPath(new URL('../../docs/validation-results.md', import.meta.url)),
  'utf8',
);
const snapshot: Record<string, CompilerEntry> = { ...readSnapshot() };
const scratch = new Scratch();
let problems = 0;
const complain = (text: string) => {
  problems++;
  console.log(`  ${text}`);
};
for (const { name, path } of COMPILED_FILES) {
  if (!existsSync(path)) {
    console.log(`${name}: not on this machine`);
    continue;
  }
  const found = describeCompiled(name, path, scratch);
  const known = snapshot[name];
  const row = rowOf(name, found);
  console.log(row);
  for (const [cause, places] of Object.entries(found.findings)) {
    console.log(`  ${cause}: ${places.length}`);
    if (cause === UNEXPLAINED) for (const place of places) complain(place);
  }
  if (values.update) snapshot[name] = found;
  else if (known === undefined || known.buildId !== found.buildId) {
    console.log(`  another build (${found.buildId}) than the one in the table (${known?.buildId})`);
  } else {
    if (!isDeepStrictEqual(known, JSON.parse(JSON.stringify(found))))
      complain('is not as in compiler-findings.json');
    if (!manual.includes(row)) complain('is not as in docs/validation-results.md');
  }
}
if (values.update) writeFileSync(SNAPSHOT, `${JSON.stringify(snapshot, undefined, 2)}\n`);
process.exitCode = problems > 0 ? 1 : 0;

function rowOf(name: string, { counts, findings }: CompilerEntry): string {
  const { proven, assumed, unknown, disproved, unclaimed } = counts;
  const count = Object.values(findings).reduce((sum, places) => sum + places.length, 0);
  const cells = [proven, assumed, unknown, disproved, unclaimed, count].map((n) => n.toLocaleString('en'));
  return `| ${name} | ${cells.join(' | ')} |`;
}
