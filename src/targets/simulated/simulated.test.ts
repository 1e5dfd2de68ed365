import { describe, expect, it } from 'vitest';
import { compileSimulation, runCompiled } from '../../../test/simulation/compile.js';
import { Choices } from './choices.js';
import { emptyTally, runSchedule } from './schedule.js';
import { shrinkChoices } from './shrink.js';

const SCHEDULES = 100_000;
const THREADS = 2;

describe('the simulated target', () => {
  it(`keeps every promise in ${SCHEDULES} schedules`, async () => {
    const script = await compileSimulation();
    const schedules = SCHEDULES / THREADS;
    const outcomes = await Promise.all(
      Array.from({ length: THREADS }, (_, i) =>
        runCompiled(script, { firstSeed: 1 + i * schedules, schedules }),
      ),
    );
    for (const { failed } of outcomes)
      expect(failed, `npm run simulate -- --seed ${failed?.seed} tells it step by step`).toBeUndefined();
    const sum = (what: keyof (typeof outcomes)[0]['tally']) =>
      outcomes.reduce((total, { tally }) => total + tally[what], 0);
    expect(sum('schedules')).toBe(SCHEDULES);
    // What they are made of: a simulation in which nothing happens proves nothing.
    expect(sum('complete')).toBeGreaterThan(SCHEDULES / 2);
    expect(sum('incomplete')).toBeGreaterThan(SCHEDULES / 4);
    expect(sum('deaths')).toBeGreaterThan(SCHEDULES / 4);
    expect(sum('reversed')).toBeGreaterThan(SCHEDULES / 10);
    expect(sum('replaced')).toBeGreaterThan(SCHEDULES / 20);
    expect(sum('vetoed')).toBeGreaterThan(SCHEDULES / 40);
    expect(sum('gone')).toBeGreaterThan(SCHEDULES / 20);
    expect(sum('forced')).toBeGreaterThan(SCHEDULES / 100);
    expect(sum('arrived')).toBeGreaterThan(SCHEDULES / 20);
    expect(sum('refused')).toBeGreaterThan(SCHEDULES / 40);
    expect(sum('left')).toBeGreaterThan(SCHEDULES / 100);
    expect(sum('completed')).toBeGreaterThan(SCHEDULES / 1000);
  }, 180_000);

  it('does the same for the same seed', async () => {
    const steps = async (seed: number) => {
      const log: string[] = [];
      await runSchedule({
        choices: Choices.ofSeed(seed),
        tally: emptyTally(),
        log: (line) => log.push(line),
      });
      return log;
    };
    const first = await steps(7);
    expect(first.length).toBeGreaterThan(5);
    expect(await steps(7)).toEqual(first);
    expect(await steps(8)).not.toEqual(first);
  });

  it('ends where a list of choices ends', async () => {
    const tally = emptyTally();
    await runSchedule({ choices: Choices.ofList([]), tally });
    expect(tally).toMatchObject({ schedules: 1, complete: 1, deaths: 0 });
  });
});

describe('shrinkChoices', () => {
  it('leaves what the failure needs, and zeroes what only has to be there', async () => {
    const list = Array.from({ length: 200 }, (_, i) => (i + 1) / 300);
    const needs = [list[50], list[120]] as const;
    const fails = async (some: readonly number[]) =>
      some.length >= 3 && some.indexOf(needs[0] as number) >= 0 && some.includes(needs[1] as number);
    expect(await shrinkChoices(list, fails)).toEqual(expect.arrayContaining([needs[0], needs[1], 0]));
    expect(await shrinkChoices(list, fails)).toHaveLength(3);
  });
});
