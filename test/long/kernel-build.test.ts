import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fetchKernelSource, type KernelSource } from '../../examples/kernel/source.js';
import { linkTree } from '../../src/build/kernel-tree.js';
import { decompressors } from '../../src/cli/decompressors.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { bootGuest, fetchKernel, type Guest } from '../support/guest.js';
import { livegraft, ROOT } from '../support/live.js';

/** Modules of the guest, in the order in which they are loaded, and which of them are patched. */
const MODULES = ['llc/llc', '802/stp', '802/garp', '802/mrp', '8021q/8021q', 'xfrm/xfrm_algo', 'key/af_key'];
const PATCHED = ['8021q/8021q', 'key/af_key'];
const INJECT = 'notifier-error-inject';
const moduleFile = (modules: string, name: string) => join(modules, 'kernel/net', `${name}.ko`);

const folder = mkdtempSync(join(tmpdir(), 'livegraft-kernel-build-'));
const vmlinux = join(folder, 'vmlinux');
const DIFFS = join(ROOT, 'test/targets/kernel');
let kernel: KernelSource;
let guest: Guest;
let moduleFlags: readonly string[];

const build = (diff: string, output: string, ...more: string[]) =>
  livegraft(
    ...['build', '--kernel', '--source', kernel.source, '--headers', kernel.headers, '--diff', diff],
    ...['--target', vmlinux, '-o', join(folder, output), '--json', ...more],
  );
const applied = (command: string, patch: string, ...more: string[]) =>
  livegraft(
    ...[command, patch, ...more, '--timeout', '30', '--gdb', guest.gdb, '--vmlinux', vmlinux],
    ...['--guest-memory', guest.memoryFile as string, '--json'],
  ).lines.at(-1);

beforeAll(async () => {
  const { release, vmlinuz, modules } = fetchKernel();
  moduleFlags = [...PATCHED, '802/garp'].flatMap((name) => ['--module', moduleFile(modules, name)]);
  kernel = fetchKernelSource(release);
  writeFileSync(vmlinux, extractVmlinux(readFileSync(vmlinuz), 'vmlinuz', decompressors));
  for (const name of ['special', 'fault', 'callbacks', 'module', 'several']) {
    for (const [format, ending] of [
      ['lgp', 'lgp'],
      ['klp', 'ko'],
    ] as const) {
      const more = ['--format', format, ...(/^(module|several)$/.test(name) ? moduleFlags : [])];
      const run = build(join(DIFFS, `${name}.diff`), `${name}.${ending}`, ...more);
      expect(run.lines.at(-1)).toMatchObject({ event: 'built' });
    }
  }
  expect(build(join(DIFFS, 'fault-version.diff'), 'fault-version.lgp').lines.at(-1)).toMatchObject({
    event: 'built',
  });
  guest = await bootGuest({
    vcpus: 2,
    sharedMemory: true,
    files: ({ modules }) => [
      ...['special', 'fault', 'callbacks', 'module', 'several'].map((name) => ({
        path: `lib/${name}.ko`,
        data: readFileSync(join(folder, `${name}.ko`)),
      })),
      ...[INJECT, `pm-${INJECT}`].map((name) => ({
        path: `lib/${name}.ko`,
        data: readFileSync(join(modules, `kernel/lib/${name}.ko`)),
      })),
      ...MODULES.map((name) => ({
        path: `lib/${basename(name)}.ko`,
        data: readFileSync(moduleFile(modules, name)),
      })),
    ],
  });
  await guest.run('(while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0');
});
afterAll(() => {
  guest?.stop();
  rmSync(folder, { recursive: true, force: true });
});

/** What the new code says, before and after the key is switched on, and how often it has warned. */
async function behaviour() {
  await guest.run('dmesg -c > /dev/null');
  const off = await guest.run('cat /proc/cmdline');
  await guest.run('echo 1 > /proc/sys/kernel/sched_schedstats');
  const on = await guest.run('cat /proc/cmdline');
  await guest.run('echo 0 > /proc/sys/kernel/sched_schedstats');
  const warnings = await guest.run('dmesg | grep -c "WARNING: .* at fs/proc/cmdline.c"');
  const harm = await guest.run('dmesg | grep -cE "BUG:|Oops|general protection|never said"');
  const short = (text: string) => text.replace(/: .*/s, '');
  return { off: short(off), on: short(on), warnings: warnings.trim(), harm: harm.trim() };
}

const cmdline = async () => (await guest.run('cat /proc/cmdline')).trim();

/** Takes every livepatch back and waits until it is gone. */
const LEAVE =
  'for p in /sys/kernel/livepatch/*; do echo 0 > $p/enabled; while [ -e $p ]; do sleep 0.2; done; done';

const loadModules = () =>
  guest.run(
    `for m in ${MODULES.map((name) => basename(name)).join(' ')}; do insmod /lib/$m.ko; done 2>/dev/null`,
  );
const vlan = () => guest.run('cat /proc/net/vlan/config');
/** Waits until the kernel's own transition is over. */
const settled = (name: string) =>
  `while [ "$(cat /sys/kernel/livepatch/livegraft_${name}/transition)" != 0 ]; do sleep 0.2; done`;
/** The module's warning, which each instance of the new code says once, and nothing else. */
const expectWarnings = async (count: number) => {
  const log = await guest.run('dmesg -c | grep -E "BUG:|WARNING:|Oops|general protection"');
  const lines = log.split('\n').filter((line) => line !== '' && !line.includes('livepatch/transition.c'));
  expect(lines.map((line) => /WARNING: .* at (net\/8021q\/vlanproc\.c)/.exec(line)?.[1] ?? line)).toEqual(
    new Array(count).fill('net/8021q/vlanproc.c'),
  );
};

describe('a patch from a diff against the source', () => {
  it('has warnings, jump labels and alternatives that work, from outside and as a module', async () => {
    const before = await cmdline();
    expect(applied('apply', join(folder, 'special.lgp'))).toMatchObject({ result: { kind: 'complete' } });
    const expected = {
      off: 'fpu 1, xenpv 0, statistics 0',
      on: 'fpu 1, xenpv 0, statistics 1',
      warnings: '1',
      harm: '0',
    };
    expect(await behaviour()).toEqual(expected);
    expect(applied('revert', 'special')).toMatchObject({ result: { kind: 'complete' } });
    expect(await cmdline()).toBe(before);

    await guest.run('insmod /lib/special.ko; sleep 3');
    expect(await behaviour()).toEqual(expected);
    await guest.run(LEAVE);
  });

  it('goes on behind an instruction that faults, from outside and as a module', async () => {
    await guest.run('dmesg -c > /dev/null');
    const before = await cmdline();
    expect(applied('apply', join(folder, 'fault.lgp'))).toMatchObject({ result: { kind: 'complete' } });
    expect(await cmdline()).toBe(`fault: ${before}`);
    expect(applied('revert', 'fault')).toMatchObject({ result: { kind: 'complete' } });
    expect(await cmdline()).toBe(before);
    await guest.run('insmod /lib/fault.ko; sleep 3');
    expect(await cmdline()).toBe(`fault: ${before}`);
    await guest.run(LEAVE);
    expect(await cmdline()).toBe(before);
    // What livegraft leaves in the tasks' field makes the kernel's livepatch wonder once (docs/kernel.md).
    const harm = await guest.run(
      'dmesg | grep -E "BUG:|Oops|general protection|WARNING" | grep -v livepatch/transition.c',
    );
    expect(harm.trim()).toBe('');
  });

  it('has its callbacks run in their order, from outside and as a module', async () => {
    const before = await cmdline();
    const ran = async () =>
      (await guest.run('dmesg -c | grep -E "callback diff |BUG:|WARNING:|Oops"'))
        .split('\n')
        .flatMap((line) => /(?:callback diff |(?=BUG:|WARNING:|Oops))(.*)/.exec(line)?.[1] ?? []);
    await ran();
    expect(applied('apply', join(folder, 'callbacks.lgp'))).toMatchObject({ result: { kind: 'complete' } });
    expect([await cmdline(), await ran()]).toEqual([
      `with callbacks: ${before}`,
      ['pre_patch', 'post_patch'],
    ]);
    expect(applied('revert', 'callbacks')).toMatchObject({ result: { kind: 'complete' } });
    expect([await cmdline(), await ran()]).toEqual([before, ['pre_unpatch', 'post_unpatch']]);

    await guest.run(
      'insmod /lib/callbacks.ko; while [ "$(cat /sys/kernel/livepatch/livegraft_callbacks/transition)" != 0 ]; do sleep 0.2; done',
      60_000,
    );
    expect(await cmdline()).toBe(`with callbacks: ${before}`);
    await guest.run(LEAVE, 60_000);
    const unprovoked = (await ran()).filter((line) => !line.includes('livepatch/transition.c'));
    expect(unprovoked).toEqual(['pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch']);
    expect(await cmdline()).toBe(before);
  });

  it('finds its exception table below and above that of another patch', async () => {
    const [before, version] = [await cmdline(), await guest.run('cat /proc/version')];
    const complete = { result: { kind: 'complete' } };
    expect(applied('apply', join(folder, 'fault.lgp'))).toMatchObject(complete);
    expect(applied('apply', join(folder, 'fault-version.lgp'))).toMatchObject(complete);
    expect(await cmdline()).toBe(`fault: ${before}`);
    expect(await guest.run('cat /proc/version')).toBe(`fault: ${version}`);
    expect(applied('revert', 'fault')).toMatchObject({ code: 'not-on-top' });
    expect(applied('revert', 'fault-version')).toMatchObject(complete);
    expect(await cmdline()).toBe(`fault: ${before}`);
    expect(applied('revert', 'fault')).toMatchObject(complete);
    expect(await cmdline()).toBe(before);
  });

  it('replaces functions of modules, loaded before and later, with what it refers to in them and in others', async () => {
    await guest.run('dmesg -c > /dev/null');
    await loadModules();
    const before = await vlan();
    expect(before).toContain('VLAN Dev name');
    const path = join(folder, 'module.lgp');
    expect(applied('apply', path)).toMatchObject({ result: { kind: 'complete' } });
    // A variable and a function of the patch, one of the module, one of the kernel that is not exported, a function of another module.
    expect(await vlan()).toBe(`1: 1 console garp_request_join [garp], fpu 1\n${before}`);
    expect(await vlan()).toBe(`2: 1 console garp_request_join [garp], fpu 1\n${before}`);
    expect(applied('revert', 'module')).toMatchObject({ result: { kind: 'complete' } });
    expect(await vlan()).toBe(before);

    await guest.run('rmmod 8021q garp');
    expect(applied('apply', path)).toMatchObject({ code: 'module-not-loaded' });
    expect(applied('apply', path, '--late')).toMatchObject({ result: { kind: 'complete' } });
    await loadModules();
    expect(await vlan()).toBe(before);
    expect(applied('apply', path)).toMatchObject({ result: { kind: 'complete' } });
    expect(await vlan()).toBe(`1: 1 console garp_request_join [garp], fpu 1\n${before}`);
    expect(applied('revert', 'module')).toMatchObject({ result: { kind: 'complete' } });
    expect(await vlan()).toBe(before);
    await expectWarnings(2);

    // The kernel's own livepatch, loaded before and later.
    for (const isLater of [false, true]) {
      if (isLater) await guest.run('rmmod 8021q garp');
      await guest.run(`insmod /lib/module.ko; ${settled('module')}`, 60_000);
      if (isLater) await loadModules();
      expect(await vlan()).toBe(`1: 1 console garp_request_join [garp], fpu 1\n${before}`);
      await guest.run(`${LEAVE}; rmmod livegraft_module`, 60_000);
      expect(await vlan()).toBe(before);
    }
    await expectWarnings(2);
  });

  it('replaces functions of the kernel and of two modules at once, one of which comes later', async () => {
    await loadModules();
    const seen = () => guest.run('head -qn1 /proc/cmdline /proc/net/vlan/config /proc/net/pfkey');
    const marked = (text: string, count: number) =>
      text.replace(/^/gm, () => (count-- > 0 ? 'several: ' : ''));
    const before = await seen();
    const complete = { result: { kind: 'complete' } };
    const path = join(folder, 'several.lgp');
    expect(applied('apply', path)).toMatchObject(complete);
    expect(await seen()).toBe(marked(before, 3));
    expect(applied('revert', 'several')).toMatchObject(complete);
    expect(await seen()).toBe(before);

    await guest.run('rmmod af_key');
    expect(applied('apply', path)).toMatchObject(complete);
    await guest.run('insmod /lib/af_key.ko');
    expect(await seen()).toBe(marked(before, 2));
    expect(applied('apply', path)).toMatchObject(complete);
    expect(await seen()).toBe(marked(before, 3));
    expect(applied('revert', 'several')).toMatchObject(complete);

    await guest.run('rmmod af_key');
    await guest.run(`insmod /lib/several.ko; ${settled('several')}; insmod /lib/af_key.ko`, 60_000);
    expect(await seen()).toBe(marked(before, 3));
    await guest.run(LEAVE, 60_000);
    expect(await seen()).toBe(before);
  });

  it("redirects a module's function over its first instructions, and is no livepatch module", async () => {
    const { modules } = fetchKernel();
    const flags = ['--module', join(modules, `kernel/lib/${INJECT}.ko`)];
    expect(build(join(DIFFS, 'displaced.diff'), 'displaced.lgp', ...flags).lines.at(-1)).toMatchObject({
      event: 'built',
      functions: ['debugfs_errno_get'],
    });
    expect(
      build(join(DIFFS, 'displaced.diff'), 'displaced.ko', ...flags, '--format', 'klp').lines.at(-1),
    ).toMatchObject({ code: 'klp-unsupported' });
    const error = '/tmp/d/notifier-error-inject/pm/actions/PM_SUSPEND_PREPARE/error';
    const read = async () => (await guest.run(`cat ${error}`)).trim();
    const load = () => guest.run(`insmod /lib/${INJECT}.ko; insmod /lib/pm-${INJECT}.ko`);
    await guest.run('dmesg -c > /dev/null; mkdir -p /tmp/d; mount -t debugfs none /tmp/d');
    await load();
    expect(await read()).toBe('0');
    const path = join(folder, 'displaced.lgp');
    const complete = { result: { kind: 'complete' } };
    expect(applied('apply', path)).toMatchObject(complete);
    expect(await read()).toBe('42');
    await guest.run(`echo -5 > ${error}`);
    expect(await read()).toBe('-5');
    await guest.run('rmmod pm-notifier-error-inject notifier-error-inject');
    await load();
    expect(await read()).toBe('0');
    expect(applied('apply', path)).toMatchObject(complete);
    expect(await read()).toBe('42');
    expect(applied('revert', 'displaced')).toMatchObject(complete);
    expect(await read()).toBe('0');
    await expectWarnings(0);
  });

  it('is refused for a module that is not given, init code, and what the kernel was made without', () => {
    const of = (name: string, ...more: string[]) => build(join(DIFFS, name), 'x', ...more).lines.at(-1);
    expect(of('module.diff')).toMatchObject({
      code: 'module-needed',
      details: { object: 'net/8021q/vlanproc.o', modules: '8021q' },
    });
    expect(of('module-init.diff', ...moduleFlags)).toMatchObject({
      code: 'init-code-changed',
      details: { file: 'vlan.c' },
    });
    expect(of('not-configured.diff')).toMatchObject({ code: 'object-not-in-target' });
  });

  it('is refused when a header changes, and when the source is another one', () => {
    expect(build(join(DIFFS, 'header.diff'), 'x').lines.at(-1)).toMatchObject({ code: 'header-changed' });
    const other = join(folder, 'other');
    linkTree(kernel.source, other, ['fs/proc/cmdline.c']);
    const path = join(other, 'fs/proc/cmdline.c');
    writeFileSync(path, readFileSync(path, 'utf8').replace("seq_putc(m, '\\n');", "seq_putc(m, '!');"));
    const run = build(join(DIFFS, 'special.diff'), 'x', '--source', other);
    expect(run.lines.at(-1)).toMatchObject({
      code: 'target-differs',
      details: { function: 'cmdline_proc_show' },
    });
  });

  it('is refused without the headers', () => {
    const diff = join(DIFFS, 'special.diff');
    expect(build(diff, 'x', '--headers', join(folder, 'none')).lines.at(-1)).toMatchObject({
      code: 'no-headers',
    });
    expect(build(diff, 'x', '--headers', folder).lines.at(-1)).toMatchObject({ code: 'headers-incomplete' });
  });
});
