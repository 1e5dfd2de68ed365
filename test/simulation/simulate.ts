import { parseArgs } from 'node:util';
import { explainFailure, simulate } from '../../src/targets/simulated/simulation.js';

/** `npm run simulate -- --seed N [--schedules N] [--long]`: see docs/simulation.md. */
const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '1' },
    schedules: { type: 'string', default: '1' },
    long: { type: 'boolean', default: false },
  },
});
const [firstSeed, schedules] = [Number(values.seed), Number(values.schedules)];
if (!Number.isSafeInteger(firstSeed) || !Number.isSafeInteger(schedules) || schedules < 1) {
  process.stderr.write('--seed and --schedules are whole numbers, and --schedules is at least 1\n');
  process.exit(2);
}
const isLong = values.long;
const start = performance.now();
const { tally, failed } = await simulate({ firstSeed, schedules, isLong });
const seconds = (performance.now() - start) / 1000;
if (failed === undefined) {
  const counts = Object.entries(tally).map(([what, count]) => `${count} ${what}`);
  process.stdout.write(`${counts.join(', ')}; no violation in ${seconds.toFixed(1)} s\n`);
} else {
  process.stdout.write(`seed ${failed.seed}: ${failed.violation}\n`);
  process.stdout.write('looking for a shorter schedule that breaks the same promise …\n');
  const shrunk = await explainFailure(failed, isLong);
  process.stdout.write(`${shrunk.steps.map((step) => `  ${step}\n`).join('')}  ${shrunk.violation}\n`);
  process.stdout.write(
    `${shrunk.choices} of ${failed.choices} choices are left; again: npm run simulate -- --seed ${failed.seed}${isLong ? ' --long' : ''}\n`,
  );
  process.exit(1);
}
