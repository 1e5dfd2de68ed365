import { describe, expect, it } from 'vitest';
import { failAtSteps, killAtRandom, killAtSteps, OPERATIONS } from '../faults/fault-bench.js';

/**
 * livegraft is killed, or fails, at some of the things that it does to a target, and at random instants; the target
 * counts mixes and lost requests, and a later run must bring it to either side. All steps, and more kills: `npm run faults`.
 */
const SEED = 1;

describe('killed with SIGKILL', () => {
  it.each(OPERATIONS)(
    'at a step of %s, leaves a target that the next run completes or reverses',
    async (operation) => {
      const { chosen, killed } = await killAtSteps(operation, 8, SEED);
      // Runs at the very end may have been quicker than the one that was counted.
      expect(killed).toBeGreaterThan(chosen / 2);
    },
  );

  it('at random under load, 30 times, leaves a target in which the next run finds its way', async () => {
    // A run that mends may be the one that is killed last.
    expect((await killAtRandom(30, SEED)).kills).toBeGreaterThanOrEqual(30);
  });
});

describe('failing', () => {
  it('at a step, either changes nothing or says that the transition is not complete', async () => {
    const { unchanged, incomplete } = await failAtSteps(9, SEED);
    expect(unchanged).toBeGreaterThan(2);
    expect(incomplete).toBeGreaterThan(2);
  });
});
