import { parseArgs } from 'node:util';
import { allowRuns } from '../support/live.js';
import { failAtSteps, killAtRandom, killAtSteps, OPERATIONS } from './fault-bench.js';

const USAGE = `give --steps, to kill before every step, or --kills N, to kill N times at random; --seed N
--of OPERATION takes the steps of one alone (${OPERATIONS.join(', ')}, or fail), --range FIRST-LAST some of them
`;

/** `npm run faults -- [--steps [--of OPERATION] [--range FIRST-LAST]] [--kills N] [--seed N]`: see docs/faults.md. */
const { values } = parseArgs({
  options: {
    steps: { type: 'boolean', default: false },
    of: { type: 'string' },
    range: { type: 'string', default: '1-' },
    kills: { type: 'string', default: '0' },
    seed: { type: 'string', default: '1' },
  },
});
const [kills, seed] = [Number(values.kills), Number(values.seed)];
const ends = /^([1-9]\d*)-([1-9]\d*)?$/.exec(values.range);
const { of } = values;
if (
  !Number.isSafeInteger(kills) ||
  kills < 0 ||
  !Number.isSafeInteger(seed) ||
  (kills === 0 && !values.steps) ||
  ends === null ||
  (of !== undefined && ![...OPERATIONS, 'fail'].includes(of))
) {
  process.stderr.write(USAGE);
  process.exit(2);
}
allowRuns(300_000);
// The target goes with this process: see fault-bench.ts.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
const start = performance.now();
const say = (text: string) =>
  process.stdout.write(`${((performance.now() - start) / 1000).toFixed(0)} s: ${text}\n`);
if (values.steps) {
  const range = { first: Number(ends[1]), last: Number(ends[2] ?? Number.POSITIVE_INFINITY) };
  for (const operation of OPERATIONS.filter((name) => of === undefined || name === of)) {
    const { steps, chosen, killed } = await killAtSteps(operation, Number.POSITIVE_INFINITY, seed, range);
    say(`${operation}: ${steps} steps, killed before ${killed} of ${chosen}; no mix, nothing lost`);
  }
  if (of === undefined || of === 'fail') {
    const { steps, done, unchanged, incomplete } = await failAtSteps(Number.POSITIVE_INFINITY, seed, range);
    say(
      `failing at ${steps} steps of apply and revert: ${done} done, ${unchanged} unchanged, ${incomplete} incomplete; no mix, nothing lost`,
    );
  }
}
if (kills > 0) {
  const report = await killAtRandom(kills, seed, (count) => {
    if (count % 50 === 0) say(`${count} kills`);
  });
  say(`seed ${seed}: ${JSON.stringify(report)}; no mix, nothing lost`);
}
