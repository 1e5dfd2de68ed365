import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { decompressors } from '../../src/cli/decompressors.js';
import { readKernel } from '../../src/cli/validate-files.js';
import { parseElf } from '../../src/elf/reader.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { mutationsOf, runMutations } from '../support/mutations.js';

/**
 * `npm run -s mutations -- --count N --seed S FILE…`: changes one thing at a time in each file, N of its table and N of its instructions,
 * and prints what share `validate` notices, the row of docs/validation-results.md, and what it misses.
 */
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { count: { type: 'string', default: '300' }, seed: { type: 'string', default: '1' } },
});
for (const file of positionals) {
  const bytes = new Uint8Array(extractVmlinux(readFileSync(file), file, decompressors));
  const kernel = readKernel(parseElf(bytes, file));
  const given = {
    ...(kernel?.release !== undefined && { kernelRelease: kernel.release }),
    ...(kernel !== undefined && { symbols: kernel.symbols }),
  };
  for (const { what, mutations } of mutationsOf(bytes, file, kernel?.release)) {
    const started = performance.now();
    const { tried, missed } = runMutations(bytes, file, mutations, {
      seed: Number(values.seed),
      count: Number(values.count),
      ...given,
    });
    const eachMs = (performance.now() - started) / (tried + 1);
    const share = ((1 - missed.length / tried) * 100).toFixed(2);
    console.log(
      `| ${what} | ${file.replace(/^.*\//, '')} | ${tried} of ${mutations.length} | ${share} % | ${Math.round(eachMs)} ms each`,
    );
    for (const mutation of missed) console.log(`  missed: ${mutation}`);
  }
}
