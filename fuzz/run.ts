import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { damage, randomOf } from './damage.js';
import { type FuzzTarget, TARGETS, tryBytes } from './targets.js';

/** `npm run fuzz -- --target X --seconds N --seed S`: see README.md. */
const { values } = parseArgs({
  options: {
    target: { type: 'string' },
    seconds: { type: 'string', default: '10' },
    seed: { type: 'string', default: '1' },
  },
});
const chosen = TARGETS.filter((target) => values.target === undefined || target.name === values.target);
if (chosen.length === 0) {
  process.stderr.write(`no target "${values.target}"; there are: ${TARGETS.map((t) => t.name).join(', ')}\n`);
  process.exit(2);
}

const MAX_CASE_MS = 5000;
let failures = 0;
for (const target of chosen) {
  const random = randomOf(Number(values.seed));
  const seeds = target.seeds();
  const end = performance.now() + Number(values.seconds) * 1000;
  const outcomes = { read: 0, refused: 0, failed: 0 };
  while (performance.now() < end) {
    const bytes = damage(seeds[random(seeds.length)] as Uint8Array, random);
    const started = performance.now();
    try {
      outcomes[tryBytes(target, bytes)]++;
      const tookMs = performance.now() - started;
      if (tookMs > MAX_CASE_MS) throw new Error(`took ${Math.round(tookMs)} ms`);
    } catch (error) {
      outcomes.failed++;
      keep(target, bytes, error as Error);
    }
  }
  failures += outcomes.failed;
  process.stdout.write(
    `${target.name}: ${outcomes.read} read, ${outcomes.refused} refused, ${outcomes.failed} failed\n`,
  );
}
process.exitCode = failures > 0 ? 1 : 0;

function keep(target: FuzzTarget, bytes: Uint8Array, error: Error): void {
  const folder = fileURLToPath(new URL('./fixtures', import.meta.url));
  mkdirSync(folder, { recursive: true });
  const name = `${target.name}-${createHash('sha256').update(bytes).digest('hex').slice(0, 12)}`;
  writeFileSync(join(folder, name), bytes);
  process.stdout.write(`${name}: ${error.stack ?? error.message}\n`);
}
