import { describe, expect, it } from 'vitest';
import {
  compile,
  compilePatchOf,
  hurtLivegraft,
  type LiveTarget,
  livegraft,
  nextLine,
  PATCH_INCLUDES,
  pause,
  snapshot,
  startLivegraft,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** The scenarios of the kernel's livepatch selftests that need callbacks or states, by their names there. */
const program = compile('callbacks.c', 'program');
const start = () => startForTest(program, '60');
const patchOf = (name: string, ...flags: string[]) =>
  compilePatchOf('callbacks.c', name, [PATCH_INCLUDES, '-DWORK=2', ...flags]);
const withCallbacks = (name: string, ...flags: string[]) => patchOf(name, `-DCALLBACKS=${name}`, ...flags);

const within = (seconds: string, command: string, target: LiveTarget, args: readonly string[]) =>
  livegraft('--json', command, '--pid', String(target.pid), '--timeout', seconds, ...args);
const run = (command: string, target: LiveTarget, ...args: string[]) => within('0.3', command, target, args);
/** What is to complete has time for it, on a crowded machine too. */
function on(command: string, target: LiveTarget, ...args: string[]): void {
  const { code, lines } = within('10', command, target, args);
  expect(lines.at(-1)).toMatchObject({ event: 'transition', result: { kind: 'complete' } });
  expect(code).toBe(0);
}

/** What the target's callbacks have printed, in their order. */
const callbacksOf = (target: LiveTarget) =>
  [...target.output().matchAll(/^callback (.*)$/gm)].map((match) => match[1]);
const letOut = (target: LiveTarget) => process.kill(target.pid, 'SIGUSR1');

describe('callbacks', () => {
  it('patch and restore: each has its turn, in the program itself', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const patch = withCallbacks('one');
    const { lines } = run('apply', target, patch);
    expect(lines).toContainEqual(
      expect.objectContaining({
        event: 'callback',
        callback: 'prePatch',
        object: 'callbacks',
        failure: null,
      }),
    );
    expect(await nextLine(target)).toBe('2 7');
    expect(callbacksOf(target)).toEqual(['one pre_patch', 'one post_patch']);
    on('revert', target);
    expect(callbacksOf(target).slice(2)).toEqual(['one pre_unpatch', 'one post_unpatch']);
    expect(await nextLine(target)).toBe('1 7');
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('pre-patch veto: the patch is refused and cleanly cancelled', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const { code, lines } = run('apply', target, withCallbacks('vetoing', '-DVETO=-19'));
    expect(code).toBe(1);
    expect(lines.at(-1)).toMatchObject({ event: 'error', code: 'callback-veto' });
    expect(lines.at(-1)).toMatchObject({ message: expect.stringContaining('returned -19') });
    expect(callbacksOf(target)).toEqual(['vetoing pre_patch']);
    expect(await nextLine(target)).toBe('1 7');
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('a busy target delays: post-patch comes when the last thread has switched', async () => {
    const target = await start();
    const patch = withCallbacks('delayed', '-DHOLD=2');
    const applying = startLivegraft('--json', 'apply', '--pid', String(target.pid), patch);
    for (let i = 0; i < 300 && !applying.output().includes('taskWaiting'); i++) await pause(10);
    expect(callbacksOf(target)).toEqual(['delayed pre_patch']);
    letOut(target);
    expect((await applying.done).code).toBe(0);
    expect(callbacksOf(target)).toEqual(['delayed pre_patch', 'delayed post_patch']);
  });

  it('a busy target stalls: a second patch may not come, no post-patch runs, and a reverse skips pre-unpatch', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const patch = withCallbacks('stalled', '-DHOLD=2');
    expect(run('apply', target, patch).code).toBe(3);
    expect(run('apply', target, withCallbacks('second')).lines.at(-1)).toMatchObject({
      code: 'transition-in-progress',
    });
    // Going on where it was does not run it again.
    expect(run('apply', target, patch).code).toBe(3);
    on('revert', target);
    expect(callbacksOf(target)).toEqual(['stalled pre_patch', 'stalled post_unpatch']);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('two patches, peeled: each has its own', async () => {
    const target = await start();
    on('apply', target, withCallbacks('one'));
    on('apply', target, withCallbacks('two', '-DWORK=3'));
    on('revert', target);
    on('revert', target);
    expect(callbacksOf(target)).toEqual([
      ...['one pre_patch', 'one post_patch', 'two pre_patch', 'two post_patch'],
      ...['two pre_unpatch', 'two post_unpatch', 'one pre_unpatch', 'one post_unpatch'],
    ]);
  });

  it('atomic replace never runs the callbacks of the replaced patch', async () => {
    const target = await start();
    on('apply', target, withCallbacks('old'));
    on('apply', target, '--replace', withCallbacks('new', '-DWORK=3'));
    on('revert', target);
    expect(callbacksOf(target)).toEqual([
      ...['old pre_patch', 'old post_patch'],
      ...['new pre_patch', 'new post_patch', 'new pre_unpatch', 'new post_unpatch'],
    ]);
    expect(await nextLine(target)).toBe('1 7');
  });

  it('one that crashes is given up, said, and the target lives on', async () => {
    const target = await start();
    const { code, lines } = run('apply', target, withCallbacks('crashing', '-DCRASH'));
    expect(code).toBe(0);
    expect(lines).toContainEqual(
      expect.objectContaining({
        event: 'callback',
        callback: 'postPatch',
        failure: expect.stringContaining('failed with signal 11'),
      }),
    );
    expect(await nextLine(target)).toBe('2 7');
    on('revert', target);
    expect(await nextLine(target)).toBe('1 7');
  });

  it('one that never returns is given up, said, and the target lives on', async () => {
    const target = await start();
    const { code, lines } = run('apply', target, withCallbacks('stuck', '-DSTUCK'));
    expect(code).toBe(0);
    expect(lines).toContainEqual(
      expect.objectContaining({
        callback: 'postPatch',
        failure: expect.stringContaining('has not returned'),
      }),
    );
    expect(await nextLine(target)).toBe('2 7');
    on('revert', target);
    expect(callbacksOf(target).at(-1)).toBe('stuck post_unpatch');
  });

  it('runs each once when livegraft is killed at any step, and a later run goes on', async () => {
    const patch = withCallbacks('once');
    const kinds = ['pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'].map((kind) => `once ${kind}`);
    const first = await start();
    const steps = hurtLivegraft(undefined, 'apply', '--pid', String(first.pid), patch).steps ?? 0;
    expect(steps).toBeGreaterThan(100);
    const target = await start();
    for (let step = 3; step < steps; step += Math.ceil(steps / 7)) {
      const from = callbacksOf(target).length;
      for (const command of ['apply', 'revert']) {
        hurtLivegraft(
          { kind: 'kill-before', step },
          command,
          '--pid',
          String(target.pid),
          ...(command === 'apply' ? [patch] : []),
        );
        run(command, target, ...(command === 'apply' ? [patch] : []));
      }
      expect(await nextLine(target)).toBe('1 7');
      const ran = callbacksOf(target).slice(from);
      // What a killed run had begun, the next one takes back before it begins anew.
      const isTakenBack = ran[1] === 'once post_unpatch';
      expect(ran.slice(isTakenBack ? 2 : 0)).toEqual(kinds);
    }
    expect(target.isAlive()).toBe(true);
  });
});

describe('states', () => {
  const withState = (name: string, version: number, ...flags: string[]) =>
    withCallbacks(name, `-DSTATE=${version}`, ...flags);

  it('change and restore', async () => {
    const target = await start();
    on('apply', target, withState('state1', 1));
    expect(await nextLine(target)).toBe('2 10');
    on('revert', target);
    expect(await nextLine(target)).toBe('1 7');
  });

  it('take-over by a cumulative patch: what the older one saved is restored by the newer', async () => {
    const target = await start();
    on('apply', target, withState('state1', 1));
    on('apply', target, '--replace', withState('state2', 2, '-DWORK=3'));
    expect(await nextLine(target)).toBe('3 10');
    on('revert', target);
    expect(await nextLine(target)).toBe('1 7');
  });

  it('the same version replaces both ways, an older one and one that does not know the state are refused', async () => {
    const target = await start();
    const [older, second, third] = [
      withState('state1', 1),
      withState('state2', 2, '-DWORK=3'),
      withState('state3', 2, '-DWORK=4'),
    ];
    on('apply', target, '--replace', second);
    on('apply', target, '--replace', third);
    on('apply', target, '--replace', second);
    expect(await nextLine(target)).toBe('3 10');
    const before = snapshot(target.pid);
    for (const options of [[older], ['--replace', older], ['--replace', withCallbacks('unknowing')]]) {
      expect(run('apply', target, ...options).lines.at(-1)).toMatchObject({ code: 'state-incompatible' });
    }
    expect(snapshot(target.pid)).toEqual(before);
    on('revert', target);
    expect(await nextLine(target)).toBe('1 7');
  });
});
