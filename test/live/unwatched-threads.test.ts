import { describe, expect, it } from 'vitest';
import {
  compile,
  compilePatchOf,
  hurtLivegraft,
  type LiveTarget,
  livegraft,
  pause,
  snapshot,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** Threads that a program creates while a transition was left alone, around its own passing of the barrier. */
const program = compile('creating.c', 'program');
const patch = compilePatchOf('creating.c', 'creating', ['-DVERSION=2'], ['--barrier', 'checkpoint']);

/** Tells the target to create and to pass the barrier, or to let out; returns its answer. */
async function tell(target: LiveTarget, signal: 'SIGUSR1' | 'SIGUSR2'): Promise<string | undefined> {
  const known = target.output().split('\n').length;
  process.kill(target.pid, signal);
  for (let i = 0; i < 1000 && target.isAlive(); i++) {
    const lines = target.output().split('\n');
    if (lines.length > known) return lines[known - 1];
    await pause(10);
  }
  return undefined;
}

describe('a thread that was created while no livegraft watched', () => {
  const run = (command: 'apply' | 'revert', target: LiveTarget, ...options: string[]) =>
    livegraft('--json', command, '--pid', String(target.pid), '--timeout', '0.3', ...options);
  const apply = (target: LiveTarget, ...options: string[]) => run('apply', target, ...options, patch);
  const revert = (target: LiveTarget, ...options: string[]) => run('revert', target, ...options);

  it.each([
    // It begins with the state of its creator.
    { kind: '', whilePatching: 'born 1, 2, mixes 0', whileUnpatching: 'born 2, 1, mixes 0' },
    // In the table it is unknown, and runs the version that all had when the transition began.
    { kind: 'gs', whilePatching: 'born 1, 1, mixes 0', whileUnpatching: 'born 2, 2, mixes 0' },
  ])(
    'stays in its version when its creator passes the barrier (target of kind "$kind")',
    async (expected) => {
      const target = await startForTest(program, '60', expected.kind);
      const { code } = snapshot(target.pid);
      expect(apply(target, '--model', 'lazy').code).toBe(3);
      expect(await tell(target, 'SIGUSR1')).toBe(expected.whilePatching);
      // The next run finds each where it is, and switches none inside of the old version.
      const again = apply(target);
      expect(again.code).toBe(3);
      expect(again.lines.at(-1)).toMatchObject({
        result: { stragglers: expect.arrayContaining([expect.objectContaining({ name: 'creating' })]) },
      });
      expect(await tell(target, 'SIGUSR2')).toBe('left, mixes 0');
      expect(apply(target).code).toBe(0);
      expect(await tell(target, 'SIGUSR1')).toBe('born 2, 2, mixes 0');
      expect(await tell(target, 'SIGUSR2')).toBe('left, mixes 0');
      expect(revert(target, '--model', 'lazy').code).toBe(3);
      expect(await tell(target, 'SIGUSR1')).toBe(expected.whileUnpatching);
      // What is left in the new version keeps it.
      expect(revert(target).code).toBe(3);
      expect(await tell(target, 'SIGUSR2')).toBe('left, mixes 0');
      expect(revert(target).code).toBe(0);
      expect(await tell(target, 'SIGUSR1')).toBe('born 1, 1, mixes 0');
      expect(snapshot(target.pid).code).toBe(code);
    },
  );
});

it('a run that is killed before it has met a thread that uses GS itself is taken back', async () => {
  const target = await startForTest(program, '60', 'gs');
  const pid = String(target.pid);
  for (const step of [48, 56, 64]) {
    expect(hurtLivegraft({ kind: 'kill-before', step }, 'apply', '--pid', pid, patch).code).toBe('killed');
    const { code, lines } = livegraft('--json', 'revert', '--pid', pid);
    // Before it had put anything there, there is nothing to take back.
    expect(code === 0 || lines.at(-1)?.code === 'no-such-patch', JSON.stringify(lines.at(-1))).toBe(true);
  }
  expect(livegraft('apply', '--pid', pid, patch).code).toBe(0);
});
