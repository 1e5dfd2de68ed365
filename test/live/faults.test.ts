import { afterEach, describe, expect, it } from 'vitest';
import {
  compilePatch,
  hurtLivegraft,
  type LiveTarget,
  livegraft,
  nextLine,
  snapshot,
  startTarget,
} from '../support/live.js';

/**
 * livegraft is killed, or fails, at every single thing that it does to a target. The target aborts when a thread sees
 * a mix of versions, and a later run must bring it to either side.
 */
let target: LiveTarget;
afterEach(() => target.stop());

const pair = compilePatch('pair.c');
const apply = () => ['apply', '--pid', String(target.pid), pair.patch];
const revert = () => ['revert', '--pid', String(target.pid)];

function expectRun(command: readonly string[], unlessDone: string): void {
  const run = livegraft('--json', ...command);
  const last = run.lines[run.lines.length - 1];
  if (run.code !== 0) expect(last, JSON.stringify(last)).toMatchObject({ event: 'error', code: unlessDone });
  expect(target.isAlive()).toBe(true);
}
const toPatched = () => expectRun(apply(), 'already-applied');
const toOriginal = () => expectRun(revert(), 'no-such-patch');

/** How many steps the two commands take; they vary a little with what the threads are doing. */
function countSteps(): { readonly apply: number; readonly revert: number } {
  const applied = hurtLivegraft(undefined, ...apply());
  const reverted = hurtLivegraft(undefined, ...revert());
  expect([applied.code, reverted.code]).toEqual([0, 0]);
  return { apply: applied.steps ?? 0, revert: reverted.steps ?? 0 };
}

async function expectAsBefore(before: ReturnType<typeof snapshot>): Promise<void> {
  // What a killed run mapped and never registered goes with the next whole one.
  toPatched();
  toOriginal();
  expect(snapshot(target.pid)).toEqual(before);
  expect(await nextLine(target)).toBe('1');
}

describe('killed with SIGKILL', () => {
  it('at any step of an apply or a revert, leaves a target that the next run completes or reverses', async () => {
    target = await startTarget(pair.program, '2', '3000');
    const before = snapshot(target.pid);
    const steps = countSteps();
    let killed = 0;
    const kill = (step: number, command: readonly string[]) => {
      const run = hurtLivegraft({ kind: 'kill-before', step }, ...command);
      if (run.code === 'killed') killed++;
      expect(target.isAlive()).toBe(true);
    };
    let nextRevert = 1;
    for (let step = 1; step <= steps.apply; step++) {
      kill(step, apply());
      if (step % 2 === 0) {
        toPatched();
        kill(nextRevert++, revert());
      }
      toOriginal();
    }
    for (; nextRevert <= steps.revert; nextRevert++) {
      toPatched();
      kill(nextRevert, revert());
      if (nextRevert % 2 === 0) toPatched();
      toOriginal();
    }
    // Runs at the very end may have been quicker than the ones that were counted.
    expect(killed).toBeGreaterThan((steps.apply + steps.revert) * 0.8);
    await expectAsBefore(before);
  }, 900_000);
});

describe('failing', () => {
  it('at any step, either changes nothing or says that the transition is not complete', async () => {
    target = await startTarget(pair.program, '2', '3000');
    const before = snapshot(target.pid);
    const steps = countSteps();
    const codes = { 0: 0, 1: 0, 3: 0 };
    const fail = (step: number, command: readonly string[]) => {
      const run = hurtLivegraft({ kind: 'throw', step }, ...command);
      expect(run.code, run.stderr).toSatisfy((code) => code === 0 || code === 1 || code === 3);
      codes[run.code as 0 | 1 | 3]++;
      expect(target.isAlive()).toBe(true);
      const status = livegraft('--json', 'status', '--pid', String(target.pid));
      const [line] = status.lines as [{ processes: [{ transition: unknown }] }];
      if (run.code === 3) expect(line.processes[0].transition).not.toBe(null);
      if (run.code === 1) expect(line.processes[0].transition).toBe(null);
    };
    for (let step = 1; step <= Math.max(steps.apply, steps.revert); step += 5) {
      fail(step, apply());
      toPatched();
      fail(step, revert());
      toOriginal();
    }
    expect(codes[1]).toBeGreaterThan(5);
    expect(codes[3]).toBeGreaterThan(5);
    await expectAsBefore(before);
  }, 600_000);
});
