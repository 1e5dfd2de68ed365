import { spawn } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { compilePatch, type LiveTarget, livegraft, pause, type Run, snapshot } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** Targets that are hard to stop, to walk or to patch. They count mixes of versions and work that got lost. */
const hostile = compilePatch('hostile.c', ['-Wno-infinite-recursion']);
const start = (mode: string, threads = 1) => startForTest(hostile.program, mode, '60', String(threads));

interface Task {
  readonly tid: number;
  readonly reliable: boolean;
  readonly reason: unknown;
  readonly frames: readonly { readonly by: string; readonly symbol: string | null }[];
}

function stacksOf(target: LiveTarget): readonly Task[] {
  const run = livegraft('--json', 'stack', '--pid', String(target.pid));
  expect(run.stderr).toBe('');
  return (run.lines[0] as unknown as { tasks: readonly Task[] }).tasks;
}

/** The target's own account, when it has done at least so much work more: no mix, nothing lost. Returns its version. */
async function expectWorks(target: LiveTarget, more = 2): Promise<string> {
  const account = () =>
    /^(\d) mixes (\d+) lost (\d+) done (\d+)$/.exec(target.output().trimEnd().split('\n').at(-1) ?? '');
  const known = account();
  for (let i = 0; i < 1000 && target.isAlive(); i++) {
    await pause(10);
    const now = account();
    if (now === null || Number(now[4]) < Number(known?.[4] ?? 0) + more) continue;
    expect({ mixes: now[2], lost: now[3] }).toEqual({ mixes: '0', lost: '0' });
    return String(now[1]);
  }
  throw new Error(`it does not go on: ${target.output().slice(-400)}`);
}

function expectDone(run: Run): Run {
  expect([run.code, run.stderr], JSON.stringify(run.lines.at(-1))).toEqual([0, '']);
  return run;
}

/** Notices of an apply and a revert. */
async function thereAndBack(target: LiveTarget, pid = target.pid): Promise<readonly string[]> {
  const before = snapshot(pid);
  const runs = [expectDone(livegraft('--json', 'apply', '--pid', String(pid), hostile.patch))];
  expect(await expectWorks(target)).toBe('2');
  runs.push(expectDone(livegraft('--json', 'revert', '--pid', String(pid))));
  expect(await expectWorks(target)).toBe('1');
  const after = snapshot(pid);
  expect(after.code).toBe(before.code);
  expect(after.maps).not.toContain('memfd:livegraft');
  return runs.flatMap(({ lines }) =>
    lines.flatMap((line) => (line.event === 'notice' ? [line.text as string] : [])),
  );
}

describe('a target', () => {
  it.each([
    ['forks without pause', 'fork', 1],
    ['creates and ends 1,000 threads a second', 'churn', 1],
    ['has 1,000 threads', 'tick', 1000],
    ['uses GS itself, with a base for each thread', 'gs', 2],
    ['takes 10,000 signals a second on signal stacks', 'signals', 1],
    ['answers requests', 'load', 2],
  ])('%s: is patched and reverted, nothing is lost', async (_, mode, threads) => {
    await thereAndBack(await start(mode, threads));
  });

  it('has a thread that is in vfork most of the time', async () => {
    await thereAndBack(await start('vfork'));
  });

  it('has a thread in a vfork that does not end: refused with its name, and no other is held meanwhile', async () => {
    const target = await start('long-vfork');
    const before = snapshot(target.pid);
    const run = livegraft('--json', 'apply', '--pid', String(target.pid), '--timeout', '1', hostile.patch);
    expect(run.code).toBe(1);
    expect(run.lines.at(-1)).toMatchObject({
      ...{ event: 'error', code: 'install-timeout' },
      message: expect.stringMatching(/thread \d+ \(hostile\) is in uninterruptible sleep in vfork/),
    });
    expect(run.lines).toContainEqual(
      expect.objectContaining({ text: expect.stringContaining('waiting for it') }),
    );
    expect(snapshot(target.pid)).toEqual(before);
    // Threads that sleep are not stopped as long as one can't be.
    const held = run.lines.flatMap(({ text }) => / were held for .* to change/.exec(String(text)) ?? []);
    expect(held).toEqual([]);
    expect(await expectWorks(target, 0)).toBe('1');
  });

  it('has a thread 100,000 frames deep: its stack is walked to the bottom from a copy, and it is said for how long it was held', async () => {
    const target = await start('deep');
    const deep = () => stacksOf(target).filter((task) => task.frames.length === 64);
    let [task] = deep();
    for (let i = 0; i < 10 && task === undefined; i++) [task] = deep();
    expect(task?.reliable, JSON.stringify(task?.reason)).toBe(true);
    const notices = await thereAndBack(target);
    expect(notices).toContainEqual(
      expect.stringMatching(
        /^thread \d+ .* held for .* the top of its deep stack was walked, and all of it copied/,
      ),
    );
  });

  it('has overflowed its stack, before the handler of that or in it: its stack is reliable', async () => {
    const target = await start('overflow', 2);
    // The pointer was on the stack in the one kind of overflow, and below it in the other.
    const wanted = ['in a handler', 'without_end', 'without_end_large'];
    const seen = new Set<string>();
    for (let i = 0; i < 60 && seen.size < wanted.length; i++) {
      for (const task of stacksOf(target)) {
        expect(task.reliable, JSON.stringify(task.reason)).toBe(true);
        for (const { by, symbol } of task.frames) {
          const name = symbol?.replace(/\+.*/, '') ?? '';
          if (wanted.includes(name)) seen.add(name);
          if (by === 'signal') seen.add('in a handler');
        }
      }
    }
    expect([...seen].sort()).toEqual(wanted);
    await thereAndBack(target);
  });

  it('is stopped by SIGSTOP: refused and as before; it is patched afterwards', async () => {
    const target = await start('load');
    process.kill(target.pid, 'SIGSTOP');
    await pause(30);
    const before = snapshot(target.pid);
    const run = livegraft('--json', 'apply', '--pid', String(target.pid), hostile.patch);
    expect(run.lines.at(-1)).toMatchObject({ event: 'error', code: 'target-stopped' });
    expect(snapshot(target.pid)).toEqual(before);
    process.kill(target.pid, 'SIGCONT');
    await thereAndBack(target);
  });

  it('lives in a user namespace and another mount namespace, with a file that is nowhere else', async () => {
    const script = `mount -t tmpfs none /mnt && cp ${hostile.program} /mnt/hidden && exec /mnt/hidden load 60`;
    const target = await startForTest(
      '/usr/bin/unshare',
      '--user',
      '--map-root-user',
      '--mount',
      '/bin/sh',
      '-c',
      script,
    );
    expect(readlinkSync(`/proc/${target.pid}/exe`)).toBe('/mnt/hidden');
    expect(readdirSync('/mnt')).not.toContain('hidden');
    expect(readlinkSync(`/proc/${target.pid}/ns/user`)).not.toBe(readlinkSync('/proc/self/ns/user'));
    await thereAndBack(target);
  });

  it('is traced by strace: refused and as before; it is patched afterwards', async () => {
    const target = await start('load');
    const before = snapshot(target.pid);
    const strace = spawn('strace', ['-f', '-e', 'trace=none', '-o', '/dev/null', '-p', String(target.pid)]);
    const ended = new Promise((resolve) => strace.on('close', resolve));
    try {
      const tracer = () =>
        /^TracerPid:\s+(\d+)/m.exec(readFileSync(`/proc/${target.pid}/status`, 'utf8'))?.[1];
      for (let i = 0; i < 200 && tracer() === '0'; i++) await pause(10);
      expect(tracer()).toBe(String(strace.pid));
      const run = livegraft('--json', 'apply', '--pid', String(target.pid), hostile.patch);
      expect(run.code).toBe(1);
      expect(run.lines.at(-1)).toMatchObject({
        ...{ event: 'error', code: 'already-traced', details: { tracer: strace.pid } },
      });
      expect(snapshot(target.pid)).toEqual(before);
    } finally {
      strace.kill('SIGINT');
      await ended;
    }
    await thereAndBack(target);
  });
});
