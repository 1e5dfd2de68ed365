import { describe, expect, it } from 'vitest';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import {
  compilePatch,
  type LiveTarget,
  livegraft,
  pause,
  snapshot,
  startLivegraft,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** Operations on a transition that a thread holds up: it sits in an old version until it is told to leave. */
const parked = compilePatch('parked.c');
const start = () => startForTest(parked.program, '60', '3');
const apply = (target: LiveTarget, ...options: string[]) =>
  livegraft('--json', 'apply', '--pid', String(target.pid), '--timeout', '0.3', ...options, parked.patch);

/** The one process of `status`, checked against the schema. */
function statusOf(target: LiveTarget, ...options: string[]) {
  const [line] = livegraft('--json', 'status', '--pid', String(target.pid), ...options).lines;
  const parsed = jsonLineSchema.parse(line);
  if (parsed.event !== 'status' || parsed.processes[0] === undefined) throw new Error(JSON.stringify(line));
  return parsed.processes[0];
}

const letOut = (target: LiveTarget) => process.kill(target.pid, 'SIGUSR1');

/** Runs a command beside the test, up to its first refusal. */
async function startUntilBusy(...args: string[]) {
  const run = startLivegraft('--json', ...args);
  for (let i = 0; i < 300 && !run.output().includes('taskWaiting'); i++) await pause(10);
  expect(run.output()).toContain('taskWaiting');
  return run;
}

describe('status --explain', () => {
  it('names the straggler, its blocking frame, since when, how often tried, and what releases it', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(apply(target).code).toBe(3);
    const [first] = statusOf(target, '--explain').transition?.stragglers ?? [];
    expect(first).toMatchObject({
      name: 'parked',
      seenAt: 'now',
      reason: { kind: 'busy', function: 'hold' },
    });
    if (first === undefined) throw new Error('no straggler');
    expect(first.frames[first.blockingFrame ?? -1]?.symbol).toMatch(/^hold\+0x/);
    expect(first.frames[0]?.symbol).toMatch(/read/);
    expect(first.releasedBy).toMatch(/return of hold .*waits in read/);
    expect(first.attempts).toBeGreaterThan(0);
    expect(Date.now() - Date.parse(first.since ?? '')).toBeLessThan(60_000);
    expect(apply(target).code).toBe(3);
    const [later] = statusOf(target, '--explain').transition?.stragglers ?? [];
    expect(later?.attempts).toBeGreaterThan(first.attempts);
    expect(later?.since).toBe(first.since);
    const text = livegraft('status', '--pid', String(target.pid), '--explain').stdout;
    expect(text).toMatch(/> #\d+ 0x[0-9a-f]+ hold\+0x[0-9a-f]+ \(parked\) {2}<- blocks/);
    const again = await startUntilBusy('apply', '--pid', String(target.pid), parked.patch);
    // While it works, another one tells what it has seen.
    await pause(1200);
    const held = statusOf(target, '--explain').transition;
    expect(held).toMatchObject({ isHeld: true, stragglers: [{ tid: first.tid, reason: { kind: 'busy' } }] });
    expect(held?.stragglers?.[0]?.seenAt).not.toBe('now');
    letOut(target);
    expect((await again.done).code).toBe(0);
    const back = await startUntilBusy('revert', '--pid', String(target.pid));
    letOut(target);
    expect((await back.done).code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });
});
