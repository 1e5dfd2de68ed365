import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { applyToKernel, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { parseGdbEndpoint } from '../../src/targets/kernel/gdb-connection.js';
import { KernelLayout, StructReader } from '../../src/targets/kernel/kernel-layout.js';
import { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import { errorOf, KernelLab, numbersIn } from '../support/kernel-lab.js';
import { pause, ROOT } from '../support/live.js';
import { readLoadavg } from '../support/loadavg-reads.js';

const lab = new KernelLab();
const { entryOf, expectQuiet, folder, killedAt, options, patchOf, run, subject } = lab;

/** Writing the limit does so; it sleeps again at once, by what `schedule_timeout` then is. */
const wakeHungTaskThread = () =>
  lab.guest.run('echo $((3000 + RANDOM % 3000)) > /proc/sys/kernel/hung_task_timeout_secs; sleep 0.2');

describe('a patch of a running kernel', () => {
  it('is applied, shown, and reverted, byte for byte', async () => {
    const patch = patchOf('cmdline.c');
    const [before, entry] = [await lab.guest.run('cat /proc/cmdline'), await entryOf('cmdline_proc_show')];
    const inspected = run('inspect', patch);
    expect(inspected.code).toBe(0);
    expect(jsonLineSchema.parse(inspected.lines.at(-1))).toMatchObject({
      kernel: {
        release: lab.guest.kernel.release,
        functions: [{ name: 'cmdline_proc_show' }],
        refusal: null,
      },
    });
    const applied = run('apply', patch);
    expect(applied.stderr).toBe('');
    for (const line of applied.lines) jsonLineSchema.parse(line);
    expect(applied.lines.at(-1)).toMatchObject({
      event: 'transition',
      result: { kind: 'complete', forced: false },
    });
    expect(await lab.guest.run('cat /proc/cmdline')).toBe(`patched: ${before}`);

    const status = run('status');
    expect(jsonLineSchema.parse(status.lines.at(-1))).toMatchObject({
      event: 'kernelStatus',
      patches: [{ name: 'cmdline', state: 'applied', functions: [{ name: 'cmdline_proc_show' }] }],
      transition: null,
    });
    expect(errorOf(run('apply', patch).lines)).toMatchObject({ code: 'already-applied' });

    expect(run('revert').lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    expect(await lab.guest.run('cat /proc/cmdline')).toBe(before);
    expect(await entryOf('cmdline_proc_show')).toBe(entry);
    expect(errorOf(run('revert').lines)).toMatchObject({ code: 'no-such-patch' });
    await expectQuiet();
  });

  it('waits for a kernel thread that sleeps in the function, and switches it when it leaves', async () => {
    const patch = patchOf('schedule-timeout.c');
    const first = run('apply', patch, '--timeout', '3');
    expect(first.code).toBe(3);
    const line = jsonLineSchema.parse(first.lines.at(-1));
    if (line.event !== 'transition' || line.result.kind !== 'incomplete') throw new Error('not incomplete');
    const straggler = line.result.stragglers.find((each) => each.name === 'khungtaskd');
    if (straggler?.reason.kind !== 'busy') throw new Error('khungtaskd is not busy');
    expect(straggler.reason.function).toBe('schedule_timeout');
    expect(straggler.reason.frames.map((frame) => frame.symbol?.replace(/\+.*/, ''))).toEqual([
      ...['__schedule', 'schedule', 'schedule_timeout', 'watchdog', 'kthread', 'ret_from_fork'],
    ]);
    const status = jsonLineSchema.parse(run('status', '--explain').lines.at(-1));
    if (status.event !== 'kernelStatus') throw new Error('no status');
    expect(status.transition?.direction).toBe('patch');
    const explained = status.transition?.stragglers?.find(({ name }) => name === 'khungtaskd');
    expect(explained).toMatchObject({
      reason: { kind: 'busy', function: 'schedule_timeout' },
      blockingFrame: 2,
    });
    expect(explained?.attempts).toBeGreaterThanOrEqual(straggler.attempts);
    // A kernel thread never comes to the edge, at which others switch.
    expect(explained?.releasedBy).toBe('the return of schedule_timeout (the version that is being replaced)');
    // Another patch has to wait.
    expect(errorOf(run('apply', patchOf('cmdline.c')).lines)).toMatchObject({
      code: 'transition-in-progress',
    });

    // Writing the limit wakes the thread, again and again until it was met on its way out.
    const second = spawn(
      process.execPath,
      [join(ROOT, 'bin/livegraft.js'), 'apply', patch, '--timeout', '60', ...subject()],
      { stdio: 'ignore' },
    );
    const ended = new Promise<number | null>((resolve) => second.on('exit', resolve));
    while (second.exitCode === null) {
      await lab.guest.run('echo $((3000 + RANDOM % 3000)) > /proc/sys/kernel/hung_task_timeout_secs', 60_000);
      await pause(300);
    }
    expect(await ended).toBe(0);
    expect(run('status').lines.at(-1)).toMatchObject({ transition: null });
    const stacks = jsonLineSchema.parse(run('stack').lines.at(-1));
    if (stacks.event !== 'kernelStack') throw new Error('no stacks');
    const thread = stacks.tasks.find((task) => task.name === 'khungtaskd');
    expect(thread?.reliable).toBe(true);
    expect(thread?.frames.map((frame) => frame.module)).toContain('patch schedule-timeout');
    await expectQuiet();
  });

  it('goes back while a kernel thread sleeps in the new code only when that leaves', async () => {
    const first = run('revert', '--timeout', '2');
    expect(first.code).toBe(3);
    // The other way round: nothing has to leave for that.
    const back = run('apply', join(folder, 'schedule-timeout.o.lgp'), '--timeout', '30');
    expect(back.lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'patch' } });
    await expectQuiet();
  });

  it('is forced only with a confirmation, and what a thread is inside of stays', async () => {
    expect(errorOf(run('force', '--accept-inconsistency').lines)).toMatchObject({ code: 'no-transition' });
    expect(run('revert', '--timeout', '1').code).toBe(3);
    expect(errorOf(run('force').lines)).toMatchObject({ code: 'force-unconfirmed' });
    expect(run('status').lines.at(-1)).toMatchObject({
      patches: [{ forced: false }],
      transition: { direction: 'unpatch' },
    });
    expect(run('force', '--accept-inconsistency').lines.at(-1)).toMatchObject({
      result: { kind: 'complete', direction: 'unpatch', forced: true },
    });
    expect(run('status').lines.at(-1)).toMatchObject({ patches: [], transition: null });
    const stacks = jsonLineSchema.parse(run('stack').lines.at(-1));
    if (stacks.event !== 'kernelStack') throw new Error('no stacks');
    const thread = stacks.tasks.find((task) => task.name === 'khungtaskd');
    expect(thread?.frames.map((frame) => frame.module)).toContain('patch schedule-timeout');
    await expectQuiet();
  });

  it('never shows a mix of two functions that change together, under fork load, killed at any time', async () => {
    const patch = patchOf('loadavg.c');
    await lab.guest.run(readLoadavg('/tmp/seen'));
    const places: readonly (readonly [string, number])[] = [
      ...[['"check"', 40] as const, ['"prepare"', 15] as const, ['"install"', 0] as const],
      ...[['"taskSwitched"', 20] as const, ['"finished"', 0] as const],
    ];
    for (const [event, delayMs] of places) {
      await killedAt(event, delayMs, 'apply', patch);
      // It goes on by itself, and the next one finds it as it is.
      expect(await lab.guest.run('echo alive', 5000)).toContain('alive');
      const again = run('apply', patch, '--timeout', '30');
      const done = again.lines.at(-1);
      if (done?.code !== 'already-applied') expect(done).toMatchObject({ result: { kind: 'complete' } });
      expect(run('revert', 'loadavg', '--timeout', '30').lines.at(-1)).toMatchObject({
        result: { kind: 'complete' },
      });
    }
    await lab.guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await lab.guest.run(
      'grep -c "both are new" /tmp/seen; grep -cE "^[0-9]{1,3}\\.[0-9]+ " /tmp/seen; grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen',
    );
    const [both, old, mix] = numbersIn(seen);
    expect(both).toBeGreaterThan(0);
    expect(old).toBeGreaterThan(0);
    expect(mix).toBe(0);
    await expectQuiet();
  });

  it("lets tasks switch themselves at the kernel's edge (model lazy), and kernel threads in the hybrid model", async () => {
    const patch = patchOf('loadavg.c');
    const before = await entryOf('error_return');
    await lab.guest.run(readLoadavg('/tmp/seen3'));
    const lazy = run('apply', patch, '--model', 'lazy', '--timeout', '2');
    expect(lazy.code).toBe(3);
    const { result } = lazy.lines.at(-1) as {
      result: { switched: number; stragglers: { name: string; reason: object }[] };
    };
    expect(result.switched).toBeGreaterThan(0);
    const waiting = result.stragglers.map(({ name }) => name);
    expect(waiting).toContain('kthreadd');
    expect(waiting).not.toContain('cat');
    const explained = jsonLineSchema.parse(run('status', '--explain').lines.at(-1));
    if (explained.event !== 'kernelStatus') throw new Error('no status');
    const thread = explained.transition?.stragglers?.find(({ name }) => name === 'kthreadd');
    // Nothing holds it but the model.
    expect(thread).toMatchObject({ reason: null, seenAt: 'now', attempts: 0 });
    expect(Date.parse(thread?.since ?? '')).toBeGreaterThan(0);
    expect(result.stragglers[0]?.reason).toEqual({
      kind: 'beforeBarrier',
      barrier: "the kernel's edge to user mode",
    });
    // It goes on without livegraft: what runs in user mode switches, in the direction that was turned to.
    expect(await entryOf('error_return')).not.toBe(before);
    expect(run('revert', 'loadavg', '--timeout', '30').lines.at(-1)).toMatchObject({
      result: { kind: 'complete', direction: 'unpatch' },
    });
    expect(await entryOf('error_return')).toBe(before);
    expect(run('apply', patch, '--timeout', '30').lines.at(-1)).toMatchObject({
      result: { kind: 'complete' },
    });
    expect(await entryOf('error_return')).toBe(before);
    expect(run('revert', 'loadavg', '--timeout', '30').lines.at(-1)).toMatchObject({
      result: { kind: 'complete' },
    });
    await lab.guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await lab.guest.run('grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen3; true');
    expect(Number(seen.trim().split('\n')[0])).toBe(0);
    await expectQuiet();
  });

  it('switches all tasks in one stop (model stop), and none while one is in an old function', async () => {
    await lab.guest.run(readLoadavg('/tmp/seen4'));
    const [patch, entry] = [patchOf('loadavg.c'), await entryOf('loadavg_proc_show')];
    const all = ['--model', 'stop', '--timeout', '30'];
    const applied = run('apply', patch, ...all).lines;
    expect(applied.at(-1)).toMatchObject({ result: { kind: 'complete', forced: false } });
    // One after the other in the list of events, and in one instant of the guest.
    // A stop that finds a reader in an old function switches none.
    const progress = applied.flatMap(({ event, switched }) =>
      event === 'progress' ? [Number(switched)] : [],
    );
    expect(progress.filter((switched) => switched > 0)).toHaveLength(1);
    await pause(300);
    expect(run('revert', 'loadavg', ...all).lines.at(-1)).toMatchObject({
      result: { kind: 'complete', direction: 'unpatch' },
    });
    expect(await entryOf('loadavg_proc_show')).toBe(entry);
    await lab.guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const [both, mix] = numbersIn(
      await lab.guest.run(
        'grep -c "both are new" /tmp/seen4; grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen4',
      ),
    );
    expect(both).toBeGreaterThan(0);
    expect(mix).toBe(0);

    await wakeHungTaskThread();
    const held = run('apply', patchOf('schedule-timeout.c'), '--model', 'stop', '--timeout', '1');
    const line = jsonLineSchema.parse(held.lines.at(-1));
    if (line.event !== 'transition' || line.result.kind !== 'incomplete') throw new Error('not incomplete');
    expect(line.result.switched).toBe(0);
    const reasonOf = (name: string) =>
      line.result.kind === 'incomplete'
        ? line.result.stragglers.find((each) => each.name === name)?.reason
        : undefined;
    expect(reasonOf('khungtaskd')).toMatchObject({ kind: 'busy', function: 'schedule_timeout' });
    // Nothing holds it but the others.
    expect(reasonOf('kthreadd')).toEqual({ kind: 'waiting' });
    expect(run('revert', ...all).lines.at(-1)).toMatchObject({ result: { kind: 'complete' } });
    await expectQuiet();
  });

  it('switches all tasks unchecked (model immediate): one that is in an old function stays in it', async () => {
    const entry = await entryOf('schedule_timeout');
    await wakeHungTaskThread();
    const immediate = ['--model', 'immediate'];
    expect(run('apply', patchOf('schedule-timeout.c'), ...immediate).lines.at(-1)).toMatchObject({
      result: { kind: 'complete', direction: 'patch', forced: false },
    });
    const moduleOfThread = () => {
      const stacks = jsonLineSchema.parse(run('stack').lines.at(-1));
      if (stacks.event !== 'kernelStack') throw new Error('no stacks');
      const thread = stacks.tasks.find((task) => task.name === 'khungtaskd');
      expect(thread?.reliable).toBe(true);
      return thread?.frames[2]?.module;
    };
    expect(moduleOfThread()).toBe('vmlinux');
    await wakeHungTaskThread();
    expect(moduleOfThread()).toBe('patch schedule-timeout');
    // Its frame returns into code that stays where it is.
    expect(run('revert', ...immediate).lines.at(-1)).toMatchObject({
      result: { kind: 'complete', direction: 'unpatch', forced: false },
    });
    expect([moduleOfThread(), await entryOf('schedule_timeout')]).toEqual(['patch schedule-timeout', entry]);
    await wakeHungTaskThread();
    expect(moduleOfThread()).toBe('vmlinux');
    await expectQuiet();
  });

  it('keeps what tasks have switched to in padding of the task_struct, forked ones too, and leaves patch_state alone', async () => {
    const endpoint = parseGdbEndpoint(lab.guest.gdb);
    if (endpoint === undefined) throw new Error('endpoint');
    await lab.guest.run(readLoadavg('/tmp/seen2'));
    const applied = run('apply', patchOf('loadavg.c'), '--timeout', '30');
    expect(applied.lines.at(-1)).toMatchObject({ result: { kind: 'complete', forced: false } });
    await pause(300);
    const session = await KernelSession.open({ endpoint, arch: x86_64, timeoutMs: 10_000, image: lab.image });
    try {
      await session.stop();
      const { stateField } = session.tasks;
      const reader = new StructReader(session.memory);
      const field = new KernelLayout(lab.image.btf, 'vmlinux').expect('task_struct', 'patch_state');
      const [values, states] = [new Set<number>(), new Set<number>()];
      for (const task of await session.tasks.tasks(await session.tasks.cpus())) {
        values.add((await reader.number(task.address, stateField)) >>> 16);
        states.add(await reader.int(task.address, field));
      }
      // Those that were there, and those that were forked since ("lg", as `kernel-patcher.ts` counts them).
      expect([...values]).toEqual([0x6c67]);
      // KLP_UNDEFINED
      expect([...states]).toEqual([-1]);
    } finally {
      await session.close();
    }
    const reverted = run('revert', 'loadavg', '--timeout', '30');
    expect(reverted.lines.at(-1)).toMatchObject({ result: { kind: 'complete' } });
    await lab.guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await lab.guest.run(
      'grep -c "both are new" /tmp/seen2; grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen2',
    );
    const [both, mix] = numbersIn(seen);
    expect(both).toBeGreaterThan(0);
    expect(mix).toBe(0);
    await expectQuiet();
  });
});

describe('a function without the nop of ftrace', () => {
  it('is patched over its first instructions while it is called, and gets them back', async () => {
    const entry = await entryOf('__do_sys_newuname');
    expect(entry).not.toMatch(/^0f1f440000/);
    await lab.guest.run(
      'rm -f /tmp/stop /tmp/stopped; (while [ ! -e /tmp/stop ]; do uname -r; done > /tmp/names 2>&1; touch /tmp/stopped) & sleep 0',
    );
    const subject = { ...options(lab.guest.gdb, () => {}), guestMemory: lab.guest.memoryFile };
    const applied = await applyToKernel({ ...subject, patchPath: patchOf('uname.c') });
    expect(applied).toMatchObject({ result: { kind: 'complete', forced: false } });
    expect(await lab.guest.run('uname -r 2>&1 | head -1')).not.toContain(lab.guest.kernel.release);
    const patched = await entryOf('__do_sys_newuname');
    // A jump over the first five bytes, and nothing else.
    expect([patched.slice(0, 2), patched.slice(10)]).toEqual(['e9', entry.slice(10)]);
    const reverted = await revertFromKernel({ ...subject, patch: 'uname' });
    expect(reverted).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    expect(await lab.guest.run('uname -r')).toContain(lab.guest.kernel.release);
    expect(await entryOf('__do_sys_newuname')).toBe(entry);
    await lab.guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    expect(Number(await lab.guest.run(`grep -c ${lab.guest.kernel.release} /tmp/names`))).toBeGreaterThan(0);
    await expectQuiet();
  });

  it('is refused by name where that is not safe, as is what livegraft works by', async () => {
    const subject = { ...options(lab.guest.gdb, () => {}), guestMemory: lab.guest.memoryFile };
    const refusalOf = (name: string) => {
      const patchPath = patchOf('refused.c', `-DEMPTY=${name}`);
      return applyToKernel({ ...subject, patchPath }).catch((error: unknown) => error);
    };
    expect(await refusalOf('clear_page_rep')).toMatchObject({
      code: 'no-fentry',
      message: expect.stringContaining('C function'),
    });
    expect(await refusalOf('memcpy_orig')).toMatchObject({ message: expect.stringContaining('noinstr') });
    expect(await refusalOf('copy_process')).toMatchObject({ code: 'function-needed' });
  });
});
