import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import {
  compilePatch,
  compilePatchOf,
  hurtLivegraft,
  type LiveTarget,
  livegraft,
  nextLine,
  pause,
  snapshot,
  startLivegraft,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** Operations on a transition that a thread holds up: it sits in an old version until it is told to leave. */
const parked = compilePatch('parked.c');
const start = () => startForTest(parked.program, '60', '3');
const revert = (target: LiveTarget, ...options: string[]) =>
  livegraft('--json', 'revert', '--pid', String(target.pid), '--timeout', '0.3', ...options);
const apply = (target: LiveTarget, ...options: string[]) =>
  livegraft('--json', 'apply', '--pid', String(target.pid), '--timeout', '0.3', ...options, parked.patch);

/** The one process of `status`, checked against the schema. */
function statusOf(target: LiveTarget, ...options: string[]) {
  const [line] = livegraft('--json', 'status', '--pid', String(target.pid), ...options).lines;
  const parsed = jsonLineSchema.parse(line);
  if (parsed.event !== 'status' || parsed.processes[0] === undefined) throw new Error(JSON.stringify(line));
  return parsed.processes[0];
}

/** How often a run says that it has tried to switch a thread. */
function triesTold(lines: readonly unknown[], tid: number): number | undefined {
  const last = jsonLineSchema.parse(lines.at(-1));
  if (last.event !== 'transition' || last.result.kind !== 'incomplete') throw new Error(JSON.stringify(last));
  return last.result.stragglers.find(({ task }) => task === String(tid))?.attempts;
}

const letOut = (target: LiveTarget) => process.kill(target.pid, 'SIGUSR1');

/** Until the entries, and a barrier, choose by thread: who is let out before, goes round in the old version once more. */
async function untilStarted(run: ReturnType<typeof startLivegraft>): Promise<void> {
  for (let i = 0; i < 2000 && !run.output().includes('"event":"started"'); i++) await pause(10);
  expect(run.output()).toContain('"event":"started"');
}

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
    const unfinished = apply(target);
    expect(unfinished.code).toBe(3);
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
    expect(first.attempts).toBe(triesTold(unfinished.lines, first.tid));
    expect(Date.now() - Date.parse(first.since ?? '')).toBeLessThan(60_000);
    expect(apply(target).code).toBe(3);
    const [later] = statusOf(target, '--explain').transition?.stragglers ?? [];
    expect(later?.attempts).toBeGreaterThan(first.attempts);
    expect(later?.since).toBe(first.since);
    const text = livegraft('status', '--pid', String(target.pid), '--explain').stdout;
    expect(text).toMatch(/> #\d+ 0x[0-9a-f]+ hold\+0x[0-9a-f]+ \(parked\) {2}<- blocks/);
    expect(text).toContain(`livegraft apply --pid ${target.pid} ${parked.patch} to complete it`);
    const again = await startUntilBusy('apply', '--pid', String(target.pid), parked.patch);
    // While it works, another one tells what it has seen. After so many looks it must still see the thread leave.
    await pause(3300);
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

describe('a transition that a thread holds up', () => {
  it('busy target module: is reversed in mid-transition by SIGQUIT, and nothing of the patch is left', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const run = await startUntilBusy('apply', '--pid', String(target.pid), parked.patch);
    run.signal('SIGQUIT');
    const { code, lines } = await run.done;
    expect(code).toBe(1);
    expect(lines).toContainEqual(expect.objectContaining({ event: 'reversing', direction: 'unpatch' }));
    expect(lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'unpatch', forced: false } });
    expect(await nextLine(target)).toBe('1');
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('is left where it is at SIGHUP, SIGINT and SIGTERM, and it is said how to go on', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const command = ['apply', '--pid', String(target.pid), parked.patch];
    const run = startLivegraft(...command);
    for (let i = 0; i < 500 && statusOf(target).transition === null; i++) await pause(10);
    run.signal('SIGHUP');
    const { code, stdout } = await run.done;
    expect(code).toBe(3);
    expect(stdout).toContain('every thread runs one consistent version; the process is safe as it is');
    expect(stdout).toContain(`what to do: go on with livegraft apply --pid ${target.pid}`);
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      const next = await startUntilBusy(...command);
      next.signal(signal);
      const { code, lines } = await next.done;
      expect(code, signal).toBe(3);
      expect(lines.at(-1)).toMatchObject({ result: { kind: 'incomplete', direction: 'patch' } });
    }
    expect(revert(target).code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('is reversed by a later command, an apply by revert and a revert by apply', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(apply(target).code).toBe(3);
    expect(statusOf(target).transition).toMatchObject({ direction: 'patch' });
    expect(revert(target).code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
    const again = await startUntilBusy('apply', '--pid', String(target.pid), parked.patch);
    letOut(target);
    expect((await again.done).code).toBe(0);
    // It parks in the new version now.
    expect(revert(target).code).toBe(3);
    expect(statusOf(target).transition).toMatchObject({ direction: 'unpatch' });
    expect(await nextLine(target)).toBe('1');
    expect(apply(target).code).toBe(0);
    expect(await nextLine(target)).toBe('2');
    expect(statusOf(target)).toMatchObject({
      patches: [{ state: 'applied', forced: false }],
      transition: null,
    });
  });

  it('is forced only with a confirmation, and the patch counts as forced for good', async () => {
    const target = await start();
    const force = (...options: string[]) =>
      livegraft('--json', 'force', '--pid', String(target.pid), ...options);
    expect(force('--accept-inconsistency').lines.at(-1)).toMatchObject({ code: 'no-transition' });
    expect(apply(target).code).toBe(3);
    expect(force().lines.at(-1)).toMatchObject({ event: 'error', code: 'force-unconfirmed' });
    expect(statusOf(target)).toMatchObject({
      patches: [{ forced: false }],
      transition: { direction: 'patch' },
    });
    const forced = force('--accept-inconsistency');
    expect(forced.lines.at(-1)).toMatchObject({ result: { kind: 'complete', forced: true } });
    expect(statusOf(target)).toMatchObject({
      patches: [{ state: 'applied', forced: true }],
      transition: null,
    });
    expect(await nextLine(target)).toBe('2');
    // The thread comes out of the old version, which is still there, and goes into the new one.
    letOut(target);
    await nextLine(target);
    letOut(target);
    await nextLine(target);
    expect(target.output().match(/^out \d/gm)).toEqual(['out 1', 'out 2']);
    const run = await startUntilBusy('revert', '--pid', String(target.pid));
    letOut(target);
    const { code, lines } = await run.done;
    expect(code).toBe(0);
    expect(lines).toContainEqual(
      expect.objectContaining({ event: 'notice', text: expect.stringMatching(/was forced/) }),
    );
    expect(readFileSync(`/proc/${target.pid}/maps`, 'utf8')).toMatch(/livegraft:test/);
    expect(await nextLine(target)).toBe('1');
  });

  it('with model stop, is refused as a whole while one thread is busy', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    // A barrier would let threads go ahead: it is not used.
    expect(apply(target, '--model', 'stop', '--barrier', 'checkpoint').code).toBe(3);
    expect(statusOf(target).transition?.tasks.map(({ state }) => state)).toEqual(
      Array.from({ length: 4 }, () => 'unpatched'),
    );
    expect(await nextLine(target)).toBe('1');
    expect(revert(target, '--model', 'stop').code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });
});

describe('the barrier', () => {
  const barrier = ['--barrier', 'checkpoint'] as const;

  it.each(['', 'gs'])(
    'switches every thread of a target of kind "%s" without a look at its stack (model lazy)',
    async (kind) => {
      const target = await startForTest(parked.program, '60', '4', kind);
      const before = snapshot(target.pid);
      const lazy = ['--pid', String(target.pid), '--model', 'lazy'];
      const run = startLivegraft('--json', 'apply', ...lazy, ...barrier, parked.patch);
      await untilStarted(run);
      letOut(target);
      const applied = await run.done;
      expect(applied.stderr).toBe('');
      expect(applied.code).toBe(0);
      // Those that were quicker than the first list of threads are in it as switched already.
      const switched = applied.lines.filter((line) => line.event === 'taskSwitched');
      expect(switched.map((line) => line.name)).toContain('parked');
      expect(switched.filter((line) => line.attempts !== 0)).toEqual([]);
      expect(applied.lines.at(-1)).toMatchObject({ result: { tasks: 5, forced: false } });
      expect(await nextLine(target)).toBe('2');
      const back = startLivegraft('--json', 'revert', ...lazy);
      await untilStarted(back);
      letOut(target);
      expect((await back.done).code).toBe(0);
      expect(await nextLine(target)).toBe('1');
      if (kind === '') expect(snapshot(target.pid)).toEqual(before);
      expect(target.isAlive()).toBe(true);
    },
  );

  it.each(['lazy', 'hybrid'])('works without livegraft, which was killed (model %s)', async (model) => {
    const target = await start();
    const before = snapshot(target.pid);
    const args = ['--pid', String(target.pid), '--model', model, ...barrier, parked.patch];
    const run = startLivegraft('--json', 'apply', ...args);
    for (let i = 0; i < 300 && !run.output().includes('taskSwitched'); i++) await pause(10);
    run.signal('SIGKILL');
    await run.done;
    await pause(100);
    const [straggler] = statusOf(target, '--explain').transition?.stragglers ?? [];
    expect(straggler?.releasedBy).toMatch(/a call of checkpoint/);
    letOut(target);
    await pause(100);
    const states = statusOf(target).transition?.tasks.map(({ state }) => state);
    expect(states).toEqual(['patched', 'patched', 'patched', 'patched']);
    letOut(target);
    await nextLine(target);
    expect(target.output().match(/^out \d/gm)).toEqual(['out 1', 'out 2']);
    expect(livegraft('apply', ...args).code).toBe(0);
    const back = await startUntilBusy('revert', '--pid', String(target.pid));
    letOut(target);
    expect((await back.done).code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('goes the other way after a reversal', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(apply(target, '--model', 'lazy', ...barrier).code).toBe(3);
    expect(await nextLine(target)).toBe('2');
    expect(revert(target, '--model', 'lazy').code).toBe(0);
    expect(await nextLine(target)).toBe('1');
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('is refused when it is replaced itself, called by new code, unknown, or missing in the lazy model', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const codeOf = (...options: string[]) => apply(target, ...options).lines.at(-1)?.code;
    expect(codeOf('--barrier', 'work')).toBe('bad-barrier');
    expect(codeOf('--barrier', 'nothing')).toBe('bad-barrier');
    const calling = compilePatchOf('parked.c', 'calling', ['-DPATCHED', '-DCALLING']);
    const refused = livegraft(
      '--json',
      'apply',
      '--pid',
      String(target.pid),
      '--barrier',
      'checkpoint',
      calling,
    );
    expect(refused.lines.at(-1)).toMatchObject({
      code: 'bad-barrier',
      message: expect.stringContaining('the code of the patch calls it'),
    });
    expect(codeOf('--model', 'lazy')).toBe('model-needs-barrier');
    expect(snapshot(target.pid)).toEqual(before);
  });
});

/** Scenarios of the kernel's livepatch selftests (tools/testing/selftests/livepatch) on a process, by their names there. */
describe('a stack of patches', () => {
  const work2 = compilePatchOf('parked.c', 'work2', ['-DWORK=2']);
  const work3 = compilePatchOf('parked.c', 'work3', ['-DWORK=3'], ['--replace', '--barrier', 'checkpoint']);
  const work4 = compilePatchOf('parked.c', 'work4', ['-DWORK=4']);
  const hold2 = compilePatchOf('parked.c', 'hold2', ['-DHOLD=2']);
  const on = (target: LiveTarget, command: string, ...args: string[]) =>
    livegraft('--json', command, '--pid', String(target.pid), '--timeout', '0.3', ...args);
  const namesOf = (target: LiveTarget) => statusOf(target).patches.map(({ name }) => name);
  const mapped = (target: LiveTarget) =>
    new Set(readFileSync(`/proc/${target.pid}/maps`, 'utf8').match(/livegraft:\w+/g));

  it('multiple livepatches: is peeled in the order that the rules allow, what others do not lie upon first', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(on(target, 'apply', work2).code).toBe(0);
    expect(on(target, 'apply', work4).code).toBe(0);
    expect(await nextLine(target)).toBe('4');
    expect(on(target, 'revert', 'work2').lines.at(-1)).toMatchObject({ code: 'not-on-top' });
    const run = await startUntilBusy('apply', '--pid', String(target.pid), hold2);
    letOut(target);
    expect((await run.done).code).toBe(0);
    expect(on(target, 'revert', 'work4').code).toBe(0);
    expect(await nextLine(target)).toBe('2');
    expect(on(target, 'revert', 'work2').code).toBe(0);
    expect(namesOf(target)).toEqual(['hold2']);
    const back = await startUntilBusy('revert', '--pid', String(target.pid));
    letOut(target);
    expect((await back.done).code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('sysfs test: what status says of a patch goes from nothing to applied and back', async () => {
    const target = await start();
    const seen = () => {
      const { patches, transition } = statusOf(target);
      return [...patches.map(({ name, state }) => `${name} ${state}`), transition?.direction];
    };
    expect(livegraft('status', '--pid', String(target.pid)).stdout).not.toContain('hold2');
    expect(on(target, 'apply', hold2).code).toBe(3);
    expect(seen()).toEqual(['hold2 applying', 'patch']);
    const run = await startUntilBusy('apply', '--pid', String(target.pid), hold2);
    letOut(target);
    expect((await run.done).code).toBe(0);
    expect(seen()).toEqual(['hold2 applied', undefined]);
    expect(on(target, 'revert').code).toBe(3);
    expect(seen()).toEqual(['hold2 reverting', 'unpatch']);
    const back = await startUntilBusy('revert', '--pid', String(target.pid));
    letOut(target);
    expect((await back.done).code).toBe(0);
    expect(seen()).toEqual([undefined]);
  });

  it('sysfs test stack_order value: is renumbered after a removal', async () => {
    const target = await start();
    const other = compilePatchOf('parked.c', 'other', ['-DCHECKPOINT']);
    expect(on(target, 'apply', work2).code).toBe(0);
    expect(on(target, 'apply', other).code).toBe(0);
    expect(on(target, 'apply', work4).code).toBe(0);
    expect(namesOf(target)).toEqual(['work2', 'other', 'work4']);
    expect(on(target, 'revert', 'other').code).toBe(0);
    expect(namesOf(target)).toEqual(['work2', 'work4']);
    expect(on(target, 'apply', other).code).toBe(0);
    expect(namesOf(target)).toEqual(['work2', 'work4', 'other']);
  });

  it('atomic replace livepatch: only the new patch is left, and below it is the original', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(on(target, 'apply', work2).code).toBe(0);
    // Declared when it was built, with a barrier.
    const run = startLivegraft('apply', '--pid', String(target.pid), '--model', 'lazy', work3);
    await pause(500);
    letOut(target);
    expect((await run.done).code).toBe(0);
    expect(await nextLine(target)).toBe('3');
    expect(namesOf(target)).toEqual(['work3']);
    expect(mapped(target)).toEqual(new Set(['livegraft:work3', 'livegraft:registry']));
    expect(on(target, 'revert').code).toBe(0);
    expect(await nextLine(target)).toBe('1');
    expect(snapshot(target.pid)).toEqual(before);
  });

  it.each(['', 'gs'])(
    'atomic replace with a busy target: goes back to the original where the new patch has no version, can be turned around (kind "%s")',
    async (kind) => {
      const target = await startForTest(parked.program, '60', '3', kind);
      const before = snapshot(target.pid);
      expect(on(target, 'apply', work2).code).toBe(0);
      expect(await nextLine(target)).toBe('2');
      expect(on(target, 'apply', '--replace', hold2).code).toBe(3);
      expect(namesOf(target)).toEqual(['work2', 'hold2']);
      expect(await nextLine(target)).toBe('1');
      expect(on(target, 'revert').code).toBe(0);
      expect(namesOf(target)).toEqual(['work2']);
      expect(await nextLine(target)).toBe('2');
      const run = await startUntilBusy('apply', '--pid', String(target.pid), '--replace', hold2);
      letOut(target);
      const { code, stderr } = await run.done;
      expect(stderr).toBe('');
      expect(code).toBe(0);
      expect(await nextLine(target)).toBe('1');
      expect(namesOf(target)).toEqual(['hold2']);
      expect(mapped(target)).toEqual(new Set(['livegraft:hold2', 'livegraft:registry']));
      const back = await startUntilBusy('revert', '--pid', String(target.pid));
      letOut(target);
      expect((await back.done).code).toBe(0);
      if (kind === '') expect(snapshot(target.pid)).toEqual(before);
      expect(target.isAlive()).toBe(true);
    },
  );

  it('killed at any step of a replacement with a barrier, is completed or turned around by the next run', async () => {
    // All steps take minutes: LIVEGRAFT_KILL_EVERY=1.
    const every = Number(process.env.LIVEGRAFT_KILL_EVERY ?? 37);
    const work5 = compilePatchOf('parked.c', 'work5', ['-DWORK=5'], ['--replace', '--barrier', 'checkpoint']);
    const target = await startForTest(parked.program, '1000', '3');
    const before = snapshot(target.pid);
    let killed = 0;
    for (let step = 3; ; step += every) {
      expect(on(target, 'apply', work2).code).toBe(0);
      const run = hurtLivegraft({ kind: 'kill-before', step }, 'apply', '--pid', String(target.pid), work5);
      if (run.code !== 'killed') break;
      expect(target.isAlive()).toBe(true);
      if (killed++ % 2 === 0) {
        const again = on(target, 'apply', work5);
        if (again.code !== 0) expect(again.lines.at(-1)).toMatchObject({ code: 'already-applied' });
        expect(statusOf(target)).toMatchObject({ patches: [{ state: 'applied' }], transition: null });
        expect(await nextLine(target)).toBe('5');
        expect(namesOf(target)).toEqual(['work5']);
      } else {
        const back = on(target, 'revert', 'work5');
        if (back.code !== 0) expect(back.lines.at(-1)).toMatchObject({ code: 'no-such-patch' });
        const left = namesOf(target);
        expect([[], ['work2']]).toContainEqual(left);
        expect(await nextLine(target)).toBe(left.length === 0 ? '1' : '2');
      }
      if (namesOf(target).length > 0) expect(on(target, 'revert').code).toBe(0);
      expect(await nextLine(target)).toBe('1');
      expect(snapshot(target.pid), `killed at step ${step}`).toEqual(before);
    }
    expect(killed).toBeGreaterThan(100 / every);
  }, 900_000);
});
