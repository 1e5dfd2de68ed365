import { describe, expect, it } from 'vitest';
import { compile, compilePatchOf, type LiveTarget, livegraft, pause, snapshot } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

const program = compile('interrupted.c', 'program');
const patchOf = (version: number) =>
  compilePatchOf('interrupted.c', `work${version}`, [`-DWORK=${version}`], ['--barrier', 'checkpoint']);
const [work2, work3] = [patchOf(2), patchOf(3)];
const other2 = compilePatchOf('interrupted.c', 'other2', ['-DOTHER']);

/** Sends a signal and waits for the target's next line. */
async function tell(target: LiveTarget, signal: 'SIGUSR1' | 'SIGUSR2'): Promise<string | undefined> {
  const known = target.output().split('\n').length;
  process.kill(target.pid, signal);
  for (let i = 0; i < 2000 && target.isAlive(); i++) {
    const lines = target.output().split('\n');
    if (lines.length > known) return lines[known - 1];
    await pause(10);
  }
  return undefined;
}

describe('a thread that a signal interrupted in a redirect, and that is still in its handler', () => {
  const on = (target: LiveTarget, command: string, ...args: string[]) =>
    livegraft('--json', command, '--pid', String(target.pid), '--timeout', '20', ...args);
  /** In the lazy model nobody is switched: it is met with the state that the transition began with. */
  const begin = (target: LiveTarget, ...command: [string, ...string[]]) =>
    expect(on(target, ...command, '--model', 'lazy', '--timeout', '0.3').code).toBe(3);

  it('before it read its state: reads it afterwards, when the transition is long complete', async () => {
    const target = await startForTest(program, '60', 'before');
    const before = snapshot(target.pid);
    expect(on(target, 'apply', work2).code).toBe(0);
    begin(target, 'revert');
    expect(await tell(target, 'SIGUSR1')).toBe('caught');
    expect(on(target, 'revert').code).toBe(0);
    expect(await tell(target, 'SIGUSR2')).toBe('let go 1, 1');
    // It is patched as any other afterwards, and what had to stay for it goes.
    expect(on(target, 'apply', work2).code).toBe(0);
    begin(target, 'revert');
    expect(await tell(target, 'SIGUSR1')).toBe('caught');
    expect(await tell(target, 'SIGUSR2')).toBe('let go 2, 2');
    expect(on(target, 'revert').code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('before it read its state: no other patch may begin, which would give it another one', async () => {
    const target = await startForTest(program, '60', 'before');
    expect(on(target, 'apply', work2).code).toBe(0);
    begin(target, 'revert');
    expect(await tell(target, 'SIGUSR1')).toBe('caught');
    // It still has the state of the patch, which stays.
    expect(on(target, 'apply', work2).code).toBe(0);
    expect(on(target, 'apply', other2).lines.at(-1)).toMatchObject({ code: 'thread-in-redirect' });
    expect(await tell(target, 'SIGUSR2')).toBe('let go 2, 2');
    expect(on(target, 'apply', other2).code).toBe(0);
  });

  it.each([
    { what: 'a removal', command: ['revert'] as [string, ...string[]] },
    { what: 'a second patch', command: ['apply', work3] as [string, ...string[]] },
  ])('behind the reading, in $what: has decided, and is refused', async (the) => {
    const target = await startForTest(program, '60', 'behind');
    expect(on(target, 'apply', work2).code).toBe(0);
    begin(target, ...the.command);
    expect(await tell(target, 'SIGUSR1')).toBe('caught');
    const refused = on(target, ...the.command, '--timeout', '2');
    expect(refused.lines.at(-1)).toMatchObject({
      result: { kind: 'incomplete', stragglers: [{ reason: { kind: 'busy', function: 'work' } }] },
    });
    expect(await tell(target, 'SIGUSR2')).toBe('let go 2, 2');
    expect(on(target, ...the.command).code).toBe(0);
  });
});
