import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { damage, randomOf } from './damage.js';
import { type FuzzTarget, tryBytes } from './support.js';
import { TARGETS } from './targets.js';

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
/** A case that lasts longer never ends. */
const MAX_HANG_MS = 30_000;
const MAX_RSS_BYTES = 3 * 2 ** 30;
const FOLDER = fileURLToPath(new URL('./fixtures', import.meta.url));
let failures = 0;
for (const target of chosen) failures += await fuzz(target);
process.exitCode = failures > 0 ? 1 : 0;

async function fuzz(target: FuzzTarget): Promise<number> {
  const random = randomOf(Number(values.seed));
  const seeds = await target.seeds();
  const guard = await watch(target, Math.max(...seeds.map((seed) => seed.length)));
  const end = performance.now() + Number(values.seconds) * 1000;
  const outcomes = { read: 0, refused: 0, failed: 0 };
  let slowestMs = 0;
  while (performance.now() < end) {
    const bytes = damage(seeds[random(seeds.length)] as Uint8Array, random);
    guard.begin(bytes);
    const started = performance.now();
    try {
      outcomes[await tryBytes(target, bytes)]++;
      const tookMs = performance.now() - started;
      slowestMs = Math.max(slowestMs, tookMs);
      if (tookMs > MAX_CASE_MS) throw new Error(`took ${Math.round(tookMs)} ms`);
    } catch (error) {
      outcomes.failed++;
      keep(target, bytes, error as Error);
    }
  }
  await guard.end();
  const { read, refused, failed } = outcomes;
  process.stdout.write(
    `${target.name}: ${read} read, ${refused} refused, ${failed} failed; the slowest took ${Math.ceil(slowestMs)} ms\n`,
  );
  return failed;
}

/** Has what this thread works on looked at by another. Cases are no longer than their seeds. */
async function watch(target: FuzzTarget, longestBytes: number) {
  const state = new Int32Array(new SharedArrayBuffer(8));
  const bytes = new Uint8Array(new SharedArrayBuffer(longestBytes));
  Atomics.store(state, 1, -1);
  const worker = new Worker(new URL('./watchdog.mjs', import.meta.url), {
    workerData: {
      state,
      bytes,
      folder: FOLDER,
      target: target.name,
      maxCaseMs: MAX_HANG_MS,
      maxRssBytes: MAX_RSS_BYTES,
    },
  });
  await new Promise((resolve, reject) => worker.once('online', resolve).once('error', reject));
  return {
    begin(each: Uint8Array): void {
      bytes.set(each);
      Atomics.store(state, 1, each.length);
      Atomics.add(state, 0, 1);
    },
    end: () => worker.terminate(),
  };
}

function keep(target: FuzzTarget, bytes: Uint8Array, error: Error): void {
  mkdirSync(FOLDER, { recursive: true });
  const name = `${target.name}-${createHash('sha256').update(bytes).digest('hex').slice(0, 12)}`;
  writeFileSync(join(FOLDER, name), bytes);
  process.stdout.write(`${name}: ${error.stack ?? error.message}\n`);
}
