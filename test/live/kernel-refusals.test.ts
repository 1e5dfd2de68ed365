import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { sha256 } from '../../src/build/from-objects.js';
import { buildReplacement } from '../../src/build/kernel-replacement.js';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { applyToKernel } from '../../src/cli/kernel-operations.js';
import { parseElf } from '../../src/elf/reader.js';
import { type ModuleImage, readModuleImage } from '../../src/kernel-image/module-image.js';
import { parsePatch } from '../../src/patch/file.js';
import { parseGdbEndpoint } from '../../src/targets/kernel/gdb-connection.js';
import { KernelPatcher } from '../../src/targets/kernel/kernel-patcher.js';
import { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import { startGdbProxy } from '../support/gdb-proxy.js';
import { errorOf, KernelLab } from '../support/kernel-lab.js';
import { livegraft } from '../support/live.js';

const lab = new KernelLab({ restarts: true });
const { compile, build, patchOf, run, options, entryOf, expectQuiet, folder, vmlinux } = lab;

describe('guest memory that QEMU shares', () => {
  it('is what the protocol reads, and is refused when it is another file', async () => {
    const endpoint = parseGdbEndpoint(lab.guest.gdb);
    if (endpoint === undefined) throw new Error('endpoint');
    const options = { endpoint, image: lab.image, arch: x86_64, timeoutMs: 10_000 };
    const session = await KernelSession.open({ ...options, memoryFile: lab.guest.memoryFile });
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
    expect(await lab.guest.run('echo alive')).toContain('alive');
  });
});

describe('what can not be patched', () => {
  const refusal = (flag: string, ...modules: ModuleImage[]): unknown => {
    const object = compile('refused.c', flag);
    try {
      return buildReplacement(parseElf(readFileSync(object), object), lab.image, {
        ...{ name: 'refused', description: '', digest: sha256, createdAt: '', modules },
      });
    } catch (error) {
      return error;
    }
  };

  it('is refused by name when the patch is built', () => {
    const names = Array.from({ length: lab.image.symbols.size }, (_, i) => lab.image.symbols.at(i));
    const ambiguous = names.find(
      ({ name, type }) =>
        type === 't' && /^[a-z_]+$/.test(name) && lab.image.symbols.findAll(name).length > 1,
    );
    expect(refusal('-DINIT')).toMatchObject({ code: 'init-code' });
    expect(refusal(`-DAMBIGUOUS=${ambiguous?.name}`)).toMatchObject({ code: 'symbol-ambiguous' });
    expect(refusal('-DUNRESOLVED')).toMatchObject({ code: 'symbol-unresolved' });
    expect(refusal('-DNOTHING')).toMatchObject({ code: 'nothing-changed' });
    expect(refusal('-DSPECIAL')).toMatchObject({ code: 'special-section' });
  });

  it('is refused by name of a module as well', () => {
    const image = (path: string) => {
      const file = join(lab.guest.kernel.modules, 'kernel', path);
      return readModuleImage(parseElf(readFileSync(file), file));
    };
    const [binfmt, ceph] = [image('fs/binfmt_misc.ko'), image('net/ceph/libceph.ko')];
    expect(refusal('-DEMPTY=init_misc_binfmt', binfmt)).toMatchObject({
      code: 'init-code',
      message: expect.stringContaining('binfmt_misc'),
    });
    // Two of its files have one of that name, and it is in no other place.
    expect(refusal('-DEMPTY=handle_reply', ceph)).toMatchObject({
      code: 'symbol-ambiguous',
      message: expect.stringContaining('libceph has 2 symbols handle_reply'),
    });
    expect(refusal('-DNOTHING', binfmt)).toMatchObject({ code: 'nothing-changed' });
    expect(refusal('-DEMPTY=bm_status_read')).toMatchObject({ code: 'nothing-changed' });
  });

  it('is refused when it is applied, and the guest stays as it was', async () => {
    const getpid = patchOf('getpid.c');
    // Only the part of it that was split off prints.
    const split = patchOf('refused.c', '-DEMPTY=wait_for_initramfs');
    for (const [barrier, why, patchPath] of [
      ['__x64_sys_getpid', 'replaces it', getpid],
      ['do_syscall_64', 'fentry nop', getpid],
      ['no_such', '0 functions', getpid],
      ['_printk', 'wait_for_initramfs.cold, which is replaced, calls it', split],
    ] as const) {
      const refused = applyToKernel({
        ...options(lab.guest.gdb, () => {}),
        patchPath,
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
    const otherBuild = { ...lab.image, buildId: lab.image.buildId?.replace(/^../, '00') };
    writeFileSync(path, buildReplacement(file, otherBuild, { ...about, digest: sha256 }).bytes);
    expect(run('inspect', path).lines.at(-1)).toMatchObject({
      kernel: { refusal: { code: 'wrong-target' } },
    });
    expect(errorOf(run('apply', path).lines)).toMatchObject({ code: 'wrong-target' });
    let digests = 0;
    const otherCode = (bytes: Uint8Array) => sha256(digests++ === 0 ? new Uint8Array() : bytes);
    writeFileSync(path, buildReplacement(file, lab.image, { ...about, digest: otherCode }).bytes);
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

  it.each(['set_memory_ro', 'set_memory_x'])(
    'is refused when %s fails in the guest, and its memory is given back',
    async (failing) => {
      const endpoint = parseGdbEndpoint(lab.guest.gdb);
      if (endpoint === undefined) throw new Error('endpoint');
      const path = patchOf('getpid.c');
      const allocations = () => lab.guest.run('grep -c module_alloc /proc/vmallocinfo; true');
      const before = await allocations();
      const session = await KernelSession.open({
        ...{ endpoint, image: lab.image, arch: x86_64, timeoutMs: 10_000 },
        memoryFile: lab.guest.memoryFile,
      });
      try {
        // A function that does nothing but return an error: -ENOSYS.
        const real = session.kernel.expect.bind(session.kernel);
        vi.spyOn(session.kernel, 'expect').mockImplementation((...names) =>
          real(...(names[0] === failing ? ['sys_ni_syscall'] : names)),
        );
        const patcher = await KernelPatcher.open(session, x86_64);
        const { registry } = patcher;
        const patch = parsePatch(readFileSync(path), path, sha256);
        const load = patcher.load(patch, { barrier: undefined, replace: false, path }, 20_000);
        await expect(load).rejects.toMatchObject({
          code: 'guest-no-memory',
          details: { function: failing, result: -38 },
        });
        expect(patcher.registry).toEqual(registry);
      } finally {
        await session.close();
      }
      expect(await allocations()).toBe(before);
      await expectQuiet();
    },
  );
});

describe('a transition that is interrupted', () => {
  beforeAll(() => {
    patchOf('cmdline.c');
  });
  const failures: readonly (readonly ['cut' | 'stall', string, string, string | undefined])[] = [
    ['cut', 'started', 'gdb-connection-lost', undefined],
    ['stall', 'taskSwitched', 'gdb-timeout', folder],
  ];
  it.each(failures)(
    'by a connection that fails (%s at %s) is taken back by the next run',
    async (failure, place, cause, socketFolder) => {
      const before = await entryOf('cmdline_proc_show');
      const proxy = await startGdbProxy(lab.guest.gdb, socketFolder);
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
    guestMemory: lab.guest.memoryFile,
    ...options(lab.guest.gdb, (kind) => {
      if (kind === 'started') void lab.guest.run(event).catch(() => {});
    }),
  });

  it('by a guest that starts again: it is told, and the new kernel is left alone', async () => {
    await expect(applyToKernel(during('echo b > /proc/sysrq-trigger'))).rejects.toMatchObject({
      code: 'target-gone',
      message: expect.stringContaining('started again'),
    });
    await lab.guest.expectBoot(2);
    expect(run('status').lines.at(-1)).toMatchObject({ patches: [], transition: null });
    await expectQuiet();
  });

  it('by a guest that panics: it is told, and its stacks can be looked at', async () => {
    await lab.guest.run('echo 0 > /proc/sys/kernel/panic; (while :; do sleep 0.02; done) & sleep 0');
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
