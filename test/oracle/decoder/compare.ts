import { mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fetchDebianPackage } from '../../../examples/debian-source.js';
import { compareFile, type DecodedFile } from './compare-file.js';

/** `npm run oracle:decoder -- [FILE…]`: the decoder against iced-x86 on every instruction of real files. */
const CACHE = join(dirname(fileURLToPath(import.meta.url)), '../../../.cache');
const INSTALLED = [
  '/usr/lib/x86_64-linux-gnu/libc.so.6',
  '/usr/lib/x86_64-linux-gnu/libstdc++.so.6',
  '/usr/lib/x86_64-linux-gnu/libcrypto.so.3',
  process.execPath,
];

/** Debian's redis-server, unpacked from its package: the server is a name of one program of redis-tools. */
function redisServer(): string {
  const folder = join(CACHE, 'redis-tools');
  mkdirSync(folder, { recursive: true });
  return join(fetchDebianPackage('redis-tools', folder), 'usr/bin/redis-check-rdb');
}

const files = process.argv.slice(2);
let failed = false;
for (const path of files.length > 0 ? files : [...INSTALLED, redisServer()]) {
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
