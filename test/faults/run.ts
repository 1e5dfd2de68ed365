import { parseArgs } from 'node:util';
import { failAtSteps, killAtRandom, killAtSteps, OPERATIONS } from './fault-bench.js';

/** `npm run faults -- [--steps] [--kills N] [--seed N]`: see docs/faults.md. */
const { values } = parseArgs({
  options: {
    steps: { type: 'boolean', default: false },
    kills: { type: 'string', default: '0' },
    seed: { type: 'string', default: '1' },
  },
});
const [kills, seed] = [Number(values.kills), Number(values.seed)];
if (
  !Number.isSafeInteger(kills) ||
  kills < 0 ||
  !Number.isSafeInteger(seed) ||
  (kills === 0 && !values.steps)
) {
  process.stderr.write(
    'give --steps, to kill before every step, or --kills N, to kill N times at random; --seed N\n',
  );
  process.exit(2);
}
const start = performance.now();
const say = (text: string) =>
  process.stdout.write(`${((performance.now() - start) / 1000).toFixed(0)} s: ${text}\n`);
if (values.steps) {
  for (const operation of OPERATIONS) {
    const { steps, chosen, killed } = await killAtSteps(operation, Number.POSITIVE_INFINITY, seed);
    say(`${operation}: ${steps} steps, killed before ${killed} of ${chosen}; no mix, nothing lost`);
  }
  const { steps, done, unchanged, incomplete } = await failAtSteps(Number.POSITIVE_INFINITY, seed);
  say(
    `failing at ${steps} steps of apply and revert: ${done} done, ${unchanged} unchanged, ${incomplete} incomplete; no mix, nothing lost`,
  );
}
if (kills > 0) {
  const report = await killAtRandom(kills, seed, (count) => {
    if (count % 50 === 0) say(`${count} kills`);
  });
  say(`seed ${seed}: ${JSON.stringify(report)}; no mix, nothing lost`);
}
