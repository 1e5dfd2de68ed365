import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import {
  compilePatch,
  type LiveTarget,
  livegraft,
  nextLine,
  pause,
  snapshot,
  startTarget,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** What a target may be or do that a patcher must cope with (DESIGN.md section 5). Targets abort on any mix of versions. */
const pair = compilePatch('pair.c');

function expectDone(...args: readonly string[]): void {
  const run = livegraft(...args);
  expect([run.code, run.stderr]).toEqual([0, '']);
}

function expectRefused(code: string, ...args: readonly string[]): Record<string, unknown> {
  const run = livegraft('--json', ...args);
  const last = run.lines[run.lines.length - 1] as Record<string, unknown>;
  expect(last).toMatchObject({ event: 'error', code });
  expect(run.code).toBe(1);
  return last;
}

async function expectThereAndBack(target: LiveTarget, pid = target.pid, rounds = 3): Promise<void> {
  for (let i = 0; i < rounds; i++) {
    expectDone('apply', '--pid', String(pid), pair.patch);
    expect(await nextLine(target)).toBe('2');
    expectDone('revert', '--pid', String(pid));
    expect(await nextLine(target)).toBe('1');
  }
  expect(target.isAlive()).toBe(true);
}

describe('a target', () => {
  it('starts programs with vfork, which run on its memory', async () => {
    await expectThereAndBack(await startForTest(pair.program, '3', '120', 'vfork'));
  });

  it('may not be dumped', async () => {
    await expectThereAndBack(await startForTest(pair.program, '3', '120', 'dumpable'), undefined, 1);
  });

  it('dies of a mapping that is writable and executable: none of ours is', async () => {
    await expectThereAndBack(await startForTest(pair.program, '3', '120', 'hardened'), undefined, 1);
  });

  it('has a leader that ended before its threads', async () => {
    const target = await startForTest(pair.program, '3', '120', 'leader');
    await pause(100);
    expect(readFileSync(`/proc/${target.pid}/task/${target.pid}/stat`, 'latin1')).toMatch(/\) Z /);
    for (let i = 0; i < 3; i++) {
      expectDone('apply', '--pid', String(target.pid), pair.patch);
      expect(await nextLine(target)).toBe('2');
      expectDone('revert', '--pid', String(target.pid));
      expect(await nextLine(target)).toBe('1');
    }
  });

  it('has threads of io_uring, which refuse to be traced', async () => {
    const target = await startForTest(pair.program, '3', '120', 'uring');
    await pause(200);
    const names = readdirSync(`/proc/${target.pid}/task`).map((tid) =>
      readFileSync(`/proc/${target.pid}/task/${tid}/comm`, 'latin1').trim(),
    );
    expect(names.some((name) => name.startsWith('iou-wrk'))).toBe(true);
    await expectThereAndBack(target, undefined, 1);
  });

  it('takes signals wherever it is, and calls the patched functions in their handlers', async () => {
    await expectThereAndBack(await startForTest(pair.program, '3', '120', 'signals'));
  });

  it.each(['handler', 'althandler'])('is in a signal handler: its stack is reliable (%s)', async (mode) => {
    const target = await startForTest(pair.program, '1', '60', mode);
    await pause(100);
    const run = livegraft('--json', 'stack', '--pid', String(target.pid));
    const [line] = run.lines as [
      { tasks: { tid: number; reliable: boolean; frames: { by: string; symbol: string | null }[] }[] },
    ];
    for (const task of line.tasks) expect(task.reliable, JSON.stringify(task)).toBe(true);
    const frames = line.tasks.find((task) => task.tid === target.pid)?.frames ?? [];
    const symbols = frames.map((frame) => frame.symbol?.replace(/\+.*/, ''));
    expect(symbols).toEqual(expect.arrayContaining(['outer', 'stay', 'stay_in_handler', 'main', '_start']));
    expect(frames.filter((frame) => frame.by === 'signal')).toHaveLength(1);
  });

  it('has a coroutine suspended inside of a function to be replaced', async () => {
    const target = await startForTest(pair.program, '2', '120', 'context');
    const before = snapshot(target.pid);
    const pid = String(target.pid);
    const error = expectRefused('suspended-context', 'apply', '--pid', pid, pair.patch);
    expect(error.remedy).toContain('--allow-suspended-contexts');
    expect(snapshot(target.pid)).toEqual(before);
    // The coroutine goes on and ends; what is left of its stack is stale.
    process.kill(target.pid, 'SIGUSR1');
    await pause(300);
    expectDone('apply', '--allow-suspended-contexts', '--pid', pid, pair.patch);
    expect(await nextLine(target)).toBe('2');
    expectDone('revert', '--allow-suspended-contexts', '--pid', pid);
    expect(await nextLine(target)).toBe('1');
  });

  it('has no room within 2 GiB', async () => {
    const target = await startForTest(pair.program, '2', '60', 'full');
    const before = snapshot(target.pid);
    expectRefused('no-room', 'apply', '--pid', String(target.pid), pair.patch);
    expect(snapshot(target.pid)).toEqual(before);
    expect(await nextLine(target)).toBe('1');
  });

  it('has a second function that can not be redirected: the first is not either', async () => {
    const two = compilePatch('two.c', ['-falign-functions=1']);
    const target = await startForTest(two.program, '60');
    const before = snapshot(target.pid);
    const error = expectRefused('not-redirectable', 'apply', '--pid', String(target.pid), two.patch);
    expect(String(error.message)).toContain('spin');
    expect(snapshot(target.pid)).toEqual(before);
    expect(target.isAlive()).toBe(true);
  });

  it('was deleted from disk', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'livegraft-deleted-'));
    const copy = join(folder, 'pair');
    copyFileSync(pair.program, copy);
    spawnSync('chmod', ['+x', copy]);
    const target = await startForTest(copy, '3', '120');
    rmSync(folder, { recursive: true });
    expect(readlinkSync(`/proc/${target.pid}/exe`)).toMatch(/ \(deleted\)$/);
    await expectThereAndBack(target, undefined, 1);
  });

  it('lives in a user, pid and mount namespace of its own, with a file that is nowhere else', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'livegraft-namespace-'));
    const script = `mount -t tmpfs none ${folder} && cp ${pair.program} ${folder}/hidden && exec ${folder}/hidden 3 120`;
    // It knows itself by another pid than we do.
    const findOuter = () => {
      const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
      return pids.find((pid) => linkOf(`/proc/${pid}/exe`) === `${folder}/hidden`);
    };
    // Not ended by the pid that it prints, which is another process's here.
    onTestFinished(() => {
      const outer = findOuter();
      if (outer !== undefined) process.kill(Number(outer), 'SIGKILL');
      rmSync(folder, { recursive: true });
    });
    const unshare = ['--user', '--map-root-user', '--pid', '--mount', '--fork', '/bin/sh', '-c', script];
    const target = await startTarget('/usr/bin/unshare', ...unshare);
    const outer = findOuter();
    expect(outer).toBeDefined();
    expect(Number(outer)).not.toBe(target.pid);
    for (let i = 0; i < 2; i++) {
      expectDone('apply', '--pid', String(outer), pair.patch);
      expect(await nextLine(target)).toBe('2');
      expectDone('revert', '--pid', String(outer));
      expect(await nextLine(target)).toBe('1');
    }
  });
});

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path);
  } catch {
    return undefined;
  }
}
