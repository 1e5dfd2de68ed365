import { readFileSync } from 'node:fs';
import { compareFile, type DecodedFile } from './compare-file.js';

/** `npm run oracle:decoder -- [FILE…]`: the decoder against iced-x86 on every instruction of real files. */
const DEFAULT_FILES = [
  '/usr/lib/x86_64-linux-gnu/libc.so.6',
  '/usr/lib/x86_64-linux-gnu/libstdc++.so.6',
  '/usr/lib/x86_64-linux-gnu/libcrypto.so.3',
  process.execPath,
];

const files = process.argv.slice(2);
let failed = false;
for (const path of files.length > 0 ? files : DEFAULT_FILES) {
  let result: DecodedFile;
  try {
    result = compareFile(readFileSync(path), path);
  } catch (error) {
    process.stderr.write(`${path}: ${(error as Error).message}\n`);
    failed = true;
    continue;
  }
  const name = path.replace(/^.*\//, '');
  process.stdout.write(
    `${name}: ${result.instructions} instructions, ${result.mismatches.size} kinds of mismatch\n`,
  );
  for (const [kind, { count, example }] of result.mismatches) {
    process.stdout.write(`  ${kind}: ${count}, for example ${example}\n`);
    failed = true;
  }
}
process.exitCode = failed ? 1 : 0;
