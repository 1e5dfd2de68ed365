import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { sha256 } from '../../src/build/from-objects.js';
import { buildReplacement } from '../../src/build/kernel-replacement.js';
import { decompressors } from '../../src/cli/decompressors.js';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { applyToKernel, kernelStatus, revertFromKernel } from '../../src/cli/kernel-operations.js';
import type { OperationEvent } from '../../src/cli/operations.js';
import { parseElf } from '../../src/elf/reader.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { type KernelImage, parseKernelImage } from '../../src/kernel-image/kernel-image.js';
import { readModuleImage } from '../../src/kernel-image/module-image.js';
import { parseGdbEndpoint } from '../../src/targets/kernel/gdb-connection.js';
import { KernelLayout, StructReader } from '../../src/targets/kernel/kernel-layout.js';
import { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import { startGdbProxy } from '../support/gdb-proxy.js';
import { bootGuest, type Guest, type KernelPackage } from '../support/guest.js';
import { compileKernelObject } from '../support/kernel-objects.js';
import { livegraft, pause, ROOT } from '../support/live.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-kernel-patch-'));
/** Unpacked once: every run of the command line reads it. */
const vmlinux = join(folder, 'vmlinux');
/** A module with a function behind a file. */
const MODULE = 'binfmt_misc';
const moduleFile = ({ modules }: KernelPackage) => join(modules, `kernel/fs/${MODULE}.ko`);
let guest: Guest;
let image: KernelImage;

beforeAll(async () => {
  guest = await bootGuest({
    ...{ vcpus: 2, sharedMemory: true, restarts: true },
    files: (kernel) => [{ path: `lib/${MODULE}.ko`, data: readFileSync(moduleFile(kernel)) }],
  });
  const bytes = extractVmlinux(readFileSync(guest.kernel.vmlinuz), 'vmlinuz', decompressors);
  writeFileSync(vmlinux, bytes);
  image = parseKernelImage(bytes, 'vmlinuz');
  // Forks and system calls all the while.
  await guest.run('(while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0');
});
afterAll(() => {
  guest?.stop();
  rmSync(folder, { recursive: true, force: true });
});

const compile = (source: string, ...flags: string[]) => compileKernelObject(folder, source, ...flags);

const build = (object: string, ...more: string[]) =>
  livegraft(
    ...['build', '--replacement', object, '--target', guest.kernel.vmlinuz],
    ...['-o', `${object}.lgp`, '--json', ...more],
  );

function patchOf(source: string, ...flags: string[]): string {
  const object = compile(source, ...flags);
  const run = build(object);
  if (run.code !== 0) throw new Error(run.stdout + run.stderr);
  return `${object}.lgp`;
}

const subject = () => ['--gdb', guest.gdb, '--vmlinux', vmlinux];
/** Through shared memory; what is killed, and the waiting for a thread, go through the protocol alone. */
const run = (...args: string[]) =>
  livegraft(...args, ...subject(), '--guest-memory', guest.memoryFile as string, '--json');
const errorOf = (lines: readonly Record<string, unknown>[]) => lines.at(-1);

/** For the operations themselves. */
const options = (gdb: string, onEvent: (kind: string) => void) => ({
  ...{ gdb, vmlinux, model: 'hybrid' as const, timeoutMs: 20_000 },
  signal: new AbortController().signal,
  onEvent: (event: OperationEvent) => onEvent(event.kind === 'step' ? event.step : event.kind),
});

/** The bytes at the entry of a function, as the guest has them. */
async function entryOf(name: string): Promise<string> {
  const endpoint = parseGdbEndpoint(guest.gdb);
  if (endpoint === undefined) throw new Error('endpoint');
  const session = await KernelSession.open({ endpoint, image, arch: x86_64, timeoutMs: 10_000 });
  try {
    await session.stop();
    return Buffer.from(await session.client.readMemory(session.kernel.expect(name), 16)).toString('hex');
  } finally {
    await session.close();
  }
}

/** Kills the command line (SIGKILL) a while after it has told of an event. */
function killedAt(event: string, delayMs: number, ...args: string[]): Promise<void> {
  const child = spawn(process.execPath, [join(ROOT, 'bin/livegraft.js'), ...args, ...subject(), '--json']);
  child.stdout.on('data', (bytes) => {
    if (String(bytes).includes(event)) setTimeout(() => child.kill('SIGKILL'), delayMs);
  });
  return new Promise((resolve) => child.on('exit', () => resolve()));
}

/** The lines that are numbers: the shell may tell of a job that has ended in between. */
function numbersIn(output: string): readonly number[] {
  return output
    .split('\n')
    .filter((line) => /^\d+$/.test(line))
    .map(Number);
}

async function expectQuiet(): Promise<void> {
  const log = await guest.run('dmesg | grep -E "BUG:|WARNING:|Oops|Call Trace|general protection" | head -3');
  expect(log.trim()).toBe('');
}

describe('a patch of a running kernel', () => {
  it('is applied, shown, and reverted, byte for byte', async () => {
    const patch = patchOf('cmdline.c');
    const [before, entry] = [await guest.run('cat /proc/cmdline'), await entryOf('cmdline_proc_show')];
    const inspected = run('inspect', patch);
    expect(inspected.code).toBe(0);
    expect(jsonLineSchema.parse(inspected.lines.at(-1))).toMatchObject({
      kernel: { release: guest.kernel.release, functions: [{ name: 'cmdline_proc_show' }], refusal: null },
    });
    const applied = run('apply', patch);
    expect(applied.stderr).toBe('');
    for (const line of applied.lines) jsonLineSchema.parse(line);
    expect(applied.lines.at(-1)).toMatchObject({
      event: 'transition',
      result: { kind: 'complete', forced: false },
    });
    expect(await guest.run('cat /proc/cmdline')).toBe(`patched: ${before}`);

    const status = run('status');
    expect(jsonLineSchema.parse(status.lines.at(-1))).toMatchObject({
      event: 'kernelStatus',
      patches: [{ name: 'cmdline', state: 'applied', functions: [{ name: 'cmdline_proc_show' }] }],
      transition: null,
    });
    expect(errorOf(run('apply', patch).lines)).toMatchObject({ code: 'already-applied' });

    expect(run('revert').lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    expect(await guest.run('cat /proc/cmdline')).toBe(before);
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
    expect(explained?.releasedBy).toContain('return of schedule_timeout');
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
      await guest.run('echo $((60 + RANDOM % 60)) > /proc/sys/kernel/hung_task_timeout_secs', 60_000);
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
    await guest.run(
      '(while [ ! -e /tmp/stop ]; do cat /proc/loadavg; cat /proc/loadavg & done > /tmp/seen; touch /tmp/stopped) & sleep 0',
    );
    const places: readonly (readonly [string, number])[] = [
      ...[['"check"', 40] as const, ['"prepare"', 15] as const, ['"install"', 0] as const],
      ...[['"taskSwitched"', 20] as const, ['"finished"', 0] as const],
    ];
    for (const [event, delayMs] of places) {
      await killedAt(event, delayMs, 'apply', patch);
      // It goes on by itself, and the next one finds it as it is.
      expect(await guest.run('echo alive', 5000)).toContain('alive');
      const again = run('apply', patch, '--timeout', '30');
      const done = again.lines.at(-1);
      if (done?.code !== 'already-applied') expect(done).toMatchObject({ result: { kind: 'complete' } });
      expect(run('revert', 'loadavg', '--timeout', '30').lines.at(-1)).toMatchObject({
        result: { kind: 'complete' },
      });
    }
    await guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await guest.run(
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
    const before = await entryOf('exit_to_user_mode_prepare');
    await guest.run(
      'rm -f /tmp/stop /tmp/stopped; (while [ ! -e /tmp/stop ]; do cat /proc/loadavg; cat /proc/loadavg & done > /tmp/seen3; touch /tmp/stopped) & sleep 0',
    );
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
      barrier: 'exit_to_user_mode_prepare',
    });
    // It goes on without livegraft: what runs in user mode switches, in the direction that was turned to.
    expect(await entryOf('exit_to_user_mode_prepare')).not.toBe(before);
    expect(run('revert', 'loadavg', '--timeout', '30').lines.at(-1)).toMatchObject({
      result: { kind: 'complete', direction: 'unpatch' },
    });
    expect(await entryOf('exit_to_user_mode_prepare')).toBe(before);
    expect(run('apply', patch, '--timeout', '30').lines.at(-1)).toMatchObject({
      result: { kind: 'complete' },
    });
    expect(await entryOf('exit_to_user_mode_prepare')).toBe(before);
    expect(run('revert', 'loadavg', '--timeout', '30').lines.at(-1)).toMatchObject({
      result: { kind: 'complete' },
    });
    await guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await guest.run('grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen3; true');
    expect(Number(seen.trim().split('\n')[0])).toBe(0);
    await expectQuiet();
  });

  it('keeps what tasks have switched to in padding of the task_struct, forked ones too, and leaves patch_state alone', async () => {
    const endpoint = parseGdbEndpoint(guest.gdb);
    if (endpoint === undefined) throw new Error('endpoint');
    await guest.run(
      'rm -f /tmp/stop /tmp/stopped; (while [ ! -e /tmp/stop ]; do cat /proc/loadavg; cat /proc/loadavg & done > /tmp/seen2; touch /tmp/stopped) & sleep 0',
    );
    const applied = run('apply', patchOf('loadavg.c'), '--timeout', '30');
    expect(applied.lines.at(-1)).toMatchObject({ result: { kind: 'complete', forced: false } });
    await pause(300);
    const session = await KernelSession.open({ endpoint, arch: x86_64, timeoutMs: 10_000, image });
    try {
      await session.stop();
      const { stateField } = session.tasks;
      const reader = new StructReader(session.memory);
      const field = new KernelLayout(image.btf, 'vmlinux').expect('task_struct', 'patch_state');
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
    await guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await guest.run(
      'grep -c "both are new" /tmp/seen2; grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen2',
    );
    const [both, mix] = numbersIn(seen);
    expect(both).toBeGreaterThan(0);
    expect(mix).toBe(0);
    await expectQuiet();
  });
});

describe('a function of a module', () => {
  const subjectOptions = () => ({
    ...options(guest.gdb, () => {}),
    ...{ guestMemory: guest.memoryFile, patch: 'binfmt' },
  });
  const apply = (patchPath: string, more = {}) => applyToKernel({ ...subjectOptions(), patchPath, ...more });
  const revert = () => revertFromKernel(subjectOptions());
  const complete = { result: { kind: 'complete', forced: false } };
  const entry = async () => {
    const { patches } = await kernelStatus(subjectOptions(), false);
    return patches.flatMap(({ functions }) => functions.filter(({ object }) => object === MODULE))[0]?.entry;
  };
  const load = () => guest.run(`insmod /lib/${MODULE}.ko; mount -t ${MODULE} none /tmp/m`);
  const unload = () => guest.run(`umount /tmp/m; rmmod ${MODULE}; grep -c ${MODULE} /proc/modules`);
  const shown = async () => (await guest.run('cat /tmp/m/status')).trim();
  let patch: string;

  beforeAll(async () => {
    await guest.run('mkdir -p /tmp/m');
    const object = compile('binfmt.c');
    expect(build(object, '--module', moduleFile(guest.kernel)).lines.at(-1)).toMatchObject({
      functions: ['bm_status_read'],
    });
    patch = `${object}.lgp`;
  });

  it('is patched with what it refers to in the module and in the kernel, and reverted', async () => {
    await expect(apply(patch)).rejects.toMatchObject({ code: 'module-not-loaded' });
    await load();
    expect(await apply(patch)).toMatchObject(complete);
    expect([await shown(), await entry()]).toEqual(['patched: enabled', 'redirected']);
    await guest.run('echo 0 > /tmp/m/status');
    expect(await shown()).toBe('patched: disabled');
    expect(await revert()).toMatchObject(complete);
    expect(await shown()).toBe('disabled');
  });

  it('is left alone when its module goes, and is told to be unpatched when it comes back', async () => {
    expect(await apply(patch)).toMatchObject(complete);
    expect((await unload()).trim()).toBe('0');
    expect(await entry()).toBe('moduleUnloaded');
    await load();
    expect([await shown(), await entry()]).toEqual(['enabled', 'moduleReloaded']);
    await expect(apply(patch)).rejects.toMatchObject({ code: 'module-reloaded' });
    expect(await revert()).toMatchObject(complete);
    expect(await apply(patch)).toMatchObject(complete);
    expect([await shown(), await entry()]).toEqual(['patched: enabled', 'redirected']);
    expect(await revert()).toMatchObject(complete);
    expect(await shown()).toBe('enabled');
    await expectQuiet();
  });

  it('may lose its module in the middle of a transition', async () => {
    const object = compile('binfmt.c', '-DAND_KERNEL');
    const built = build(object, '--module', moduleFile(guest.kernel), '--name', 'binfmt');
    expect(built.lines.at(-1)).toMatchObject({ functions: ['oom_reaper', 'bm_status_read'] });
    const both = `${object}.lgp`;
    expect(await apply(both, { timeoutMs: 1000 })).toMatchObject({ result: { kind: 'incomplete' } });
    expect((await unload()).trim()).toBe('0');
    expect(await revert()).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    await load();
    expect(await shown()).toBe('enabled');
    await expectQuiet();
  });

  it('is refused in another build of the module, and in one for another kernel', async () => {
    const file = readFileSync(moduleFile(guest.kernel));
    const module = readModuleImage(parseElf(file, MODULE));
    const object = parseElf(readFileSync(compile('binfmt.c')), 'binfmt.o');
    const about = { name: 'other', description: '', createdAt: '', digest: sha256 };
    const other = join(folder, 'other-module.lgp');
    const otherBuild = { ...module, buildId: module.buildId.replace(/^../, '00') };
    writeFileSync(other, buildReplacement(object, image, { ...about, modules: [otherBuild] }).bytes);
    await expect(apply(other)).rejects.toMatchObject({ code: 'wrong-target', details: { module: MODULE } });
    const otherKernel = { ...module, release: '5.10.0-1-amd64' };
    expect(() => buildReplacement(object, image, { ...about, modules: [otherKernel] })).toThrow(
      '5.10.0-1-amd64',
    );
    expect(await shown()).toBe('enabled');
  });
});

describe('a function without the nop of ftrace', () => {
  it('is patched over its first instructions while it is called, and gets them back', async () => {
    const entry = await entryOf('__do_sys_newuname');
    expect(entry).not.toMatch(/^0f1f440000/);
    await guest.run(
      'rm -f /tmp/stop /tmp/stopped; (while [ ! -e /tmp/stop ]; do uname -r; done > /tmp/names 2>&1; touch /tmp/stopped) & sleep 0',
    );
    const subject = { ...options(guest.gdb, () => {}), guestMemory: guest.memoryFile };
    const applied = await applyToKernel({ ...subject, patchPath: patchOf('uname.c') });
    expect(applied).toMatchObject({ result: { kind: 'complete', forced: false } });
    expect(await guest.run('uname -r 2>&1 | head -1')).not.toContain(guest.kernel.release);
    const patched = await entryOf('__do_sys_newuname');
    // A jump over the first five bytes, and nothing else.
    expect([patched.slice(0, 2), patched.slice(10)]).toEqual(['e9', entry.slice(10)]);
    const reverted = await revertFromKernel({ ...subject, patch: 'uname' });
    expect(reverted).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    expect(await guest.run('uname -r')).toContain(guest.kernel.release);
    expect(await entryOf('__do_sys_newuname')).toBe(entry);
    await guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    expect(Number(await guest.run(`grep -c ${guest.kernel.release} /tmp/names`))).toBeGreaterThan(0);
    await expectQuiet();
  });

  it('is refused by name where that is not safe, as is what livegraft works by', async () => {
    const subject = { ...options(guest.gdb, () => {}), guestMemory: guest.memoryFile };
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

describe('guest memory that QEMU shares', () => {
  it('is what the protocol reads, and is refused when it is another file', async () => {
    const endpoint = parseGdbEndpoint(guest.gdb);
    if (endpoint === undefined) throw new Error('endpoint');
    const options = { endpoint, image, arch: x86_64, timeoutMs: 10_000 };
    const session = await KernelSession.open({ ...options, memoryFile: guest.memoryFile });
    await session.stop();
    const cpus = await session.tasks.cpus();
    for (const task of await session.tasks.tasks(cpus)) {
      // A vmalloc stack, a structure in the direct map, and the end of the kernel's data.
      for (const address of [
        task.stack + 8192,
        task.address,
        session.kernel.expect('init_task') + 4096 - 8,
      ]) {
        const [shared, real] = [
          await session.memory.read(address, 64),
          await session.client.readMemory(address, 64),
        ];
        expect(Buffer.compare(shared, real)).toBe(0);
      }
    }
    await session.close();
    writeFileSync(join(folder, 'zeros'), new Uint8Array(2 ** 20));
    for (const memoryFile of [join(folder, 'zeros'), join(folder, 'none'), vmlinux])
      await expect(KernelSession.open({ ...options, memoryFile })).rejects.toMatchObject({
        code: 'guest-memory-file',
      });
    expect(await guest.run('echo alive')).toContain('alive');
  });
});

describe('what can not be patched', () => {
  const refusal = (...flags: string[]): unknown => {
    const object = compile('refused.c', ...flags);
    try {
      return buildReplacement(parseElf(readFileSync(object), object), image, {
        ...{ name: 'refused', description: '', digest: sha256, createdAt: '' },
      });
    } catch (error) {
      return error;
    }
  };

  it('is refused by name when the patch is built', () => {
    const names = Array.from({ length: image.symbols.size }, (_, i) => image.symbols.at(i));
    const ambiguous = names.find(
      ({ name, type }) => type === 't' && /^[a-z_]+$/.test(name) && image.symbols.findAll(name).length > 1,
    );
    expect(refusal('-DINIT')).toMatchObject({ code: 'init-code' });
    expect(refusal(`-DAMBIGUOUS=${ambiguous?.name}`)).toMatchObject({ code: 'symbol-ambiguous' });
    expect(refusal('-DUNRESOLVED')).toMatchObject({ code: 'symbol-unresolved' });
    expect(refusal('-DNOTHING')).toMatchObject({ code: 'nothing-changed' });
    expect(refusal('-DSPECIAL')).toMatchObject({ code: 'special-section' });
  });

  it('is refused when it is applied, and the guest stays as it was', async () => {
    for (const [barrier, why] of [
      ['__x64_sys_getpid', 'replaces it'],
      ['do_syscall_64', 'fentry nop'],
      ['no_such', '0 functions'],
    ] as const) {
      const refused = applyToKernel({
        ...options(guest.gdb, () => {}),
        patchPath: patchOf('getpid.c'),
        barrier,
      });
      await expect(refused).rejects.toMatchObject({
        code: 'bad-barrier',
        message: expect.stringContaining(why),
      });
    }
    const object = compile('refused.c', '-DNO_FENTRY');
    expect(build(object).code).toBe(0);
    const entry = await entryOf('memcpy_orig');
    const inspected = run('inspect', `${object}.lgp`);
    expect(inspected.code).toBe(1);
    expect(inspected.lines.at(-1)).toMatchObject({ kernel: { refusal: { code: 'no-fentry' } } });
    expect(errorOf(run('apply', `${object}.lgp`).lines)).toMatchObject({ code: 'no-fentry' });
    expect(await entryOf('memcpy_orig')).toBe(entry);
    expect(errorOf(livegraft('apply', `${object}.lgp`, '--pid', '1', '--json').lines)).toMatchObject({
      event: 'error',
    });
    await expectQuiet();
  });

  it('is refused when it was made for another build, or other code', async () => {
    const object = compile('cmdline.c');
    const about = { name: 'other', description: '', createdAt: '' };
    const file = parseElf(readFileSync(object), object);
    const path = join(folder, 'other.lgp');
    const before = await entryOf('cmdline_proc_show');
    const otherBuild = { ...image, buildId: image.buildId?.replace(/^../, '00') };
    writeFileSync(path, buildReplacement(file, otherBuild, { ...about, digest: sha256 }).bytes);
    expect(run('inspect', path).lines.at(-1)).toMatchObject({
      kernel: { refusal: { code: 'wrong-target' } },
    });
    expect(errorOf(run('apply', path).lines)).toMatchObject({ code: 'wrong-target' });
    let digests = 0;
    const otherCode = (bytes: Uint8Array) => sha256(digests++ === 0 ? new Uint8Array() : bytes);
    writeFileSync(path, buildReplacement(file, image, { ...about, digest: otherCode }).bytes);
    expect(errorOf(run('apply', path).lines)).toMatchObject({ code: 'old-code-differs' });
    expect(await entryOf('cmdline_proc_show')).toBe(before);
  });

  it('is refused when the guest has no memory for it, which says no itself', async () => {
    const before = await entryOf('cmdline_proc_show');
    // More than the area of modules has.
    const patch = patchOf('cmdline.c', '-DHUGE');
    expect(errorOf(run('apply', patch).lines)).toMatchObject({ code: 'guest-no-memory' });
    expect(await entryOf('cmdline_proc_show')).toBe(before);
    const status = jsonLineSchema.parse(run('status').lines.at(-1));
    if (status.event !== 'kernelStatus') throw new Error('no status');
    expect(status.transition).toBeNull();
    expect(status.patches.map((each) => each.name)).not.toContain('cmdline-DHUGE');
    await expectQuiet();
  });
});

describe('a transition that is interrupted', () => {
  beforeAll(() => {
    patchOf('cmdline.c');
  });
  const failures: readonly (readonly ['cut' | 'stall', string, string])[] = [
    ['cut', 'started', 'gdb-connection-lost'],
    ['stall', 'taskSwitched', 'gdb-timeout'],
  ];
  it.each(failures)(
    'by a connection that fails (%s at %s) is taken back by the next run',
    async (failure, place, cause) => {
      const before = await entryOf('cmdline_proc_show');
      const proxy = await startGdbProxy(guest.gdb, folder);
      try {
        const failed = applyToKernel({
          patchPath: join(folder, 'cmdline.o.lgp'),
          answerTimeoutMs: 5000,
          ...options(proxy.gdb, (kind) => {
            if (kind === place) proxy[failure]();
          }),
        });
        await expect(failed).rejects.toMatchObject({ code: 'transition-interrupted', details: { cause } });
      } finally {
        proxy.close();
      }
      expect(run('revert', 'cmdline', '--timeout', '20').lines.at(-1)).toMatchObject({
        result: { kind: 'complete', direction: 'unpatch' },
      });
      expect(await entryOf('cmdline_proc_show')).toBe(before);
      await expectQuiet();
    },
  );

  /** A kernel thread never leaves the function: the transition lasts until something happens. */
  const during = (event: string) => ({
    patchPath: patchOf('refused.c', '-DEMPTY=oom_reaper'),
    guestMemory: guest.memoryFile,
    ...options(guest.gdb, (kind) => {
      if (kind === 'started') void guest.run(event).catch(() => {});
    }),
  });

  it('by a guest that starts again: it is told, and the new kernel is left alone', async () => {
    await expect(applyToKernel(during('echo b > /proc/sysrq-trigger'))).rejects.toMatchObject({
      code: 'target-gone',
      message: expect.stringContaining('started again'),
    });
    await guest.expectBoot(2);
    expect(run('status').lines.at(-1)).toMatchObject({ patches: [], transition: null });
    await expectQuiet();
  });

  it('by a guest that panics: it is told, and its stacks can be looked at', async () => {
    await guest.run('echo 0 > /proc/sys/kernel/panic; (while :; do sleep 0.02; done) & sleep 0');
    await expect(applyToKernel(during('echo c > /proc/sysrq-trigger'))).rejects.toMatchObject({
      code: 'target-gone',
      message: expect.stringContaining('panicked'),
    });
    expect(errorOf(run('apply', join(folder, 'cmdline.o.lgp')).lines)).toMatchObject({ code: 'target-gone' });
    const stacks = jsonLineSchema.parse(run('stack').lines.at(-1));
    if (stacks.event !== 'kernelStack') throw new Error('no stacks');
    const symbols = stacks.tasks.flatMap((task) => task.frames.map((frame) => frame.symbol ?? ''));
    expect(symbols.filter((symbol) => symbol.startsWith('panic+'))).toHaveLength(1);
  });
});
