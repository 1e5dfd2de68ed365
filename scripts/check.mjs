// The one check: format and lint, types, boundaries, dead code. Runs all, then fails if any did.
import { spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const STEPS = [
  ['format and lint', ['node_modules/@biomejs/biome/bin/biome', 'check', '--error-on-warnings', '.']],
  ['types', ['node_modules/typescript7/bin/tsc', '-p', '.']],
  ['boundaries', ['scripts/boundaries.mjs']],
  ['dead code', ['node_modules/knip/bin/knip.js']],
];

let failed = 0;
for (const [name, command] of STEPS) {
  const start = Date.now();
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { cwd: root, encoding: 'utf8' });
  const ok = status === 0;
  process.stdout.write(`${ok ? 'ok  ' : 'FAIL'} ${name} (${Date.now() - start} ms)\n`);
  if (!ok) {
    failed++;
    process.stdout.write(`${stdout}${stderr}\n`);
  }
}
process.exit(failed === 0 ? 0 : 1);
