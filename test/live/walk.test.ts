import { spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { compile, compilePatch, livegraft, pause } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** The reliable walk of real threads, held against gdb's. */
interface Task {
  readonly tid: number;
  readonly reliable: boolean;
  readonly reason: unknown;
  readonly frames: readonly {
    readonly address: string;
    readonly symbol: string | null;
    readonly module: string;
  }[];
}

function stacksOf(pid: number): readonly Task[] {
  const run = livegraft('--json', 'stack', '--pid', String(pid));
  expect(run.stderr).toBe('');
  return (run.lines[0] as unknown as { tasks: readonly Task[] }).tasks;
}

/** Program counters of every frame, by thread, as gdb sees them. */
function gdbStacksOf(pid: number): ReadonlyMap<number, readonly string[]> {
  const script = [
    'import gdb',
    'for thread in gdb.selected_inferior().threads():',
    '  thread.switch()',
    '  frame = gdb.newest_frame()',
    '  while frame is not None:',
    '    print("FRAME", thread.ptid[1], hex(frame.pc()), frame.type() in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME))',
    '    frame = frame.older()',
  ].join('\n');
  const { stdout } = spawnSync(
    'gdb',
    [
      '-q',
      '-nx',
      '-batch',
      '-ex',
      'set backtrace past-main on',
      '-p',
      String(pid),
      '-ex',
      `python\n${script}\nend`,
    ],
    { encoding: 'utf8', maxBuffer: 2 ** 26 },
  );
  const stacks = new Map<number, string[]>();
  for (const [, tid, pc, isInferred] of stdout.matchAll(/^FRAME (\d+) (0x[0-9a-f]+) (\w+)$/gm)) {
    if (isInferred === 'True') continue;
    const stack = stacks.get(Number(tid)) ?? [];
    stack.push(pc as string);
    stacks.set(Number(tid), stack);
  }
  return stacks;
}

describe('walkReliable', () => {
  it('sees the frames that gdb sees, without frame pointers, down to the bottom', async () => {
    const program = compile('frames.c', 'program', ['-fomit-frame-pointer']);
    const target = await startForTest(program, 'deep', '60');
    const tasks = stacksOf(target.pid);
    const expected = gdbStacksOf(target.pid);
    // The leader goes on; the others wait for ever.
    const blocked = tasks.filter((task) => task.tid !== target.pid);
    expect(blocked).toHaveLength(6);
    for (const task of blocked) {
      expect(task.reliable, JSON.stringify(task.reason)).toBe(true);
      const frames = task.frames.map((frame) => frame.address);
      // Only the first frames of a deep stack are reported.
      expect(frames).toEqual(expected.get(task.tid)?.slice(0, frames.length));
      if (frames.length < 64) expect(frames).toHaveLength(expected.get(task.tid)?.length ?? 0);
    }
  });

  it('walks out of the vDSO, whose tables are in memory only', async () => {
    const target = await startForTest(
      compile('frames.c', 'program', ['-fomit-frame-pointer']),
      'deep',
      '120',
    );
    let seen = 0;
    for (let i = 0; i < 60 && seen === 0; i++) {
      for (const task of stacksOf(target.pid)) {
        expect(task.reliable, JSON.stringify(task)).toBe(true);
        if (task.frames.some((frame) => frame.module === '[vdso]')) seen++;
      }
    }
    expect(seen).toBeGreaterThan(0);
  });

  it('walks through instructions that a redirect has displaced', async () => {
    const { program, patch } = compilePatch('frames.c');
    const target = await startForTest(program, 'displaced', '120');
    const pid = String(target.pid);
    await pause(50);
    // The thread is in held(): it stays with the old versions.
    const begun = livegraft('--json', 'apply', '--pid', pid, '--timeout', '0.2', patch);
    expect(begun.code).toBe(3);
    const last = begun.lines[begun.lines.length - 1];
    expect(last).toMatchObject({
      result: { kind: 'incomplete', stragglers: [{ reason: { kind: 'busy', function: 'held' } }] },
    });
    process.kill(target.pid, 'SIGUSR1');
    await pause(100);
    const [task] = stacksOf(target.pid);
    expect(task?.reliable, JSON.stringify(task)).toBe(true);
    const symbols = task?.frames.map((frame) => (frame.symbol ?? '?').replace(/\+.*/, '')) ?? [];
    const at = symbols.indexOf('first_calls');
    expect(symbols.slice(at - 1, at + 3)).toEqual(['blocker', 'first_calls', 'held', 'main']);
    // Its return address lies in the displaced copy, which is in no file.
    expect(task?.frames[at]?.module).toContain('frames');
    const goesBack = livegraft('--json', 'revert', '--pid', pid, '--timeout', '0.2');
    expect(goesBack.code).toBe(0);
    expect(livegraft('apply', '--pid', pid, '--timeout', '0.2', patch).code).toBe(3);
    process.kill(target.pid, 'SIGUSR2');
    expect(livegraft('apply', '--pid', pid, patch).code).toBe(0);
    await pause(200);
    const [first, ...more] = target.output().trimEnd().split('\n').slice(1).map(Number);
    expect(first).toBe(1);
    // Calls count up by one; the new version answers one more than the old one.
    expect(more.some((value, i) => value === i + 3)).toBe(true);
    expect(target.isAlive()).toBe(true);
  });
});
