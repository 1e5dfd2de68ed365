import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { beforeAll, describe, expect, it } from 'vitest';
import { sha256 } from '../../src/build/from-objects.js';
import { buildReplacement } from '../../src/build/kernel-replacement.js';
import { writeKlpModule } from '../../src/build/klp-module.js';
import { applyToKernel, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { kernelStatus } from '../../src/cli/kernel-views.js';
import { watchKernel } from '../../src/cli/kernel-watch.js';
import { parseElf } from '../../src/elf/reader.js';
import { readModuleImage } from '../../src/kernel-image/module-image.js';
import { parsePatch } from '../../src/patch/file.js';
import type { KernelPackage } from '../support/guest.js';
import { KernelLab } from '../support/kernel-lab.js';
import { livegraft, pause, startLivegraft } from '../support/live.js';

/** A module with a function behind a file. */
const MODULE = 'binfmt_misc';
const moduleFile = ({ modules }: KernelPackage) => join(modules, `kernel/fs/${MODULE}.ko`);
/** One whose init code calls a function of its own. */
const dummyFile = ({ modules }: KernelPackage) => join(modules, 'kernel/drivers/net/dummy.ko');
/** One whose functions have no nop of ftrace, as all of `lib`, and one that uses it. */
const injectFile = ({ modules }: KernelPackage, prefix = '') =>
  join(modules, `kernel/lib/${prefix}notifier-error-inject.ko`);
const lab = new KernelLab({
  files: (kernel) => [
    { path: `lib/${MODULE}.ko`, data: readFileSync(moduleFile(kernel)) },
    { path: 'lib/dummy.ko', data: readFileSync(dummyFile(kernel)) },
    { path: 'lib/inject.ko', data: readFileSync(injectFile(kernel)) },
    { path: 'lib/pm-inject.ko', data: readFileSync(injectFile(kernel, 'pm-')) },
  ],
});
const { build, compile, expectQuiet, folder, options } = lab;

describe('a function of a module', () => {
  const subjectOptions = () => ({
    ...options(lab.guest.gdb, () => {}),
    ...{ guestMemory: lab.guest.memoryFile, patch: 'binfmt' },
  });
  const apply = (patchPath: string, more = {}) => applyToKernel({ ...subjectOptions(), patchPath, ...more });
  const revert = () => revertFromKernel(subjectOptions());
  const complete = { result: { kind: 'complete', forced: false } };
  /** What is at the function's entry, and what became of the module. */
  const states = async () => {
    const { patches } = await kernelStatus(subjectOptions(), false);
    const fn = patches.flatMap(({ functions }) => functions).find(({ object }) => object === MODULE);
    const module = patches.flatMap(({ moduleStates }) => moduleStates).find(({ name }) => name === MODULE);
    return [fn?.entry, module?.state];
  };
  const load = () => lab.guest.run(`insmod /lib/${MODULE}.ko; mount -t ${MODULE} none /tmp/m`);
  const unload = () => lab.guest.run(`umount /tmp/m; rmmod ${MODULE}; grep -c ${MODULE} /proc/modules`);
  const shown = async () => (await lab.guest.run('cat /tmp/m/status')).trim();
  /** A watch in this process, once it has begun; `end` ends it. */
  const watching = () => {
    const abort = new AbortController();
    const changes: string[] = [];
    let begin = () => {};
    const began = new Promise<void>((resolve) => {
      begin = resolve;
    });
    const run = watchKernel({
      ...{
        gdb: lab.guest.gdb,
        vmlinux: lab.vmlinux,
        guestMemory: lab.guest.memoryFile,
        signal: abort.signal,
      },
      onEvent: (event) => {
        if (event.kind === 'step' && event.step === 'watch') begin();
        if (event.kind === 'object') changes.push(`${event.patch} ${event.change} ${event.object}`);
      },
    });
    const end = () => {
      abort.abort();
      return run;
    };
    return { changes, began: Promise.race([began, run]), end };
  };
  let patch: string;

  beforeAll(async () => {
    await lab.guest.run('mkdir -p /tmp/m');
    const object = compile('binfmt.c');
    expect(build(object, '--module', moduleFile(lab.guest.kernel)).lines.at(-1)).toMatchObject({
      functions: ['bm_status_read'],
    });
    patch = `${object}.lgp`;
  });

  it('is patched with what it refers to in the module and in the kernel, and reverted', async () => {
    await expect(apply(patch)).rejects.toMatchObject({ code: 'module-not-loaded' });
    await load();
    expect(await apply(patch)).toMatchObject(complete);
    expect([await shown(), ...(await states())]).toEqual(['patched: enabled', 'redirected', 'patched']);
    await lab.guest.run('echo 0 > /tmp/m/status');
    expect(await shown()).toBe('patched: disabled');
    expect(await revert()).toMatchObject(complete);
    expect(await shown()).toBe('disabled');
  });

  it('is left alone when its module goes, and is told to be unpatched when it comes back', async () => {
    expect(await apply(patch)).toMatchObject(complete);
    expect((await unload()).trim()).toBe('0');
    expect(await states()).toEqual(['moduleUnloaded', 'pending']);
    await load();
    expect([await shown(), ...(await states())]).toEqual(['enabled', 'moduleReloaded', 'unpatched']);
    // To apply it again brings it to the module.
    expect(await apply(patch)).toMatchObject(complete);
    expect(await shown()).toBe('patched: enabled');
    await expect(apply(patch)).rejects.toMatchObject({ code: 'already-applied' });
    expect((await unload()).trim()).toBe('0');
    expect(await revert()).toMatchObject({ result: { kind: 'complete', tasks: 0 } });
    await load();
    expect(await shown()).toBe('enabled');
    await expectQuiet();
  });

  it('may lose its module in the middle of a transition', async () => {
    const object = compile('binfmt.c', '-DAND_KERNEL');
    const built = build(object, '--module', moduleFile(lab.guest.kernel), '--name', 'binfmt');
    expect(built.lines.at(-1)).toMatchObject({ functions: ['oom_reaper', 'bm_status_read'] });
    const both = `${object}.lgp`;
    expect(await apply(both, { timeoutMs: 1000 })).toMatchObject({ result: { kind: 'incomplete' } });
    expect((await unload()).trim()).toBe('0');
    expect(await revert()).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    await load();
    expect(await shown()).toBe('enabled');
    await expectQuiet();
  });

  it('waits for its module with --late, and is there before init code runs, each time, while a watch runs', async () => {
    expect((await unload()).trim()).toBe('0');
    const object = compile('dummy.c');
    expect(build(object, '--module', dummyFile(lab.guest.kernel)).code).toBe(0);
    const dummy = `${object}.lgp`;
    await expect(apply(dummy)).rejects.toMatchObject({ code: 'module-not-loaded' });
    for (const path of [dummy, patch])
      expect(await apply(path, { late: true })).toMatchObject({ result: { kind: 'complete', tasks: 0 } });
    expect(await states()).toEqual([undefined, 'pending']);

    const watch = watching();
    await watch.began;
    // The init code calls what the patch replaces, and then the module goes again.
    expect(await lab.guest.run('insmod /lib/dummy.ko 2>&1; grep -c dummy /proc/modules')).toMatch(
      /memory\n0/,
    );
    await load();
    expect(await shown()).toBe('patched: enabled');
    expect((await unload()).trim()).toBe('0');
    await load();
    await watch.end();
    expect(watch.changes).toEqual([
      // busybox tries it by finit_module, then by init_module.
      ...['dummy patched dummy', 'dummy left dummy', 'dummy patched dummy', 'dummy left dummy'],
      ...['patched', 'left', 'patched'].map((change) => `binfmt ${change} ${MODULE}`),
    ]);
    expect([await shown(), ...(await states())]).toEqual(['patched: enabled', 'redirected', 'patched']);

    // Nobody watches: it runs as it is, until the next watch has begun.
    expect((await unload()).trim()).toBe('0');
    await load();
    expect([await shown(), ...(await states())]).toEqual(['enabled', 'moduleReloaded', 'unpatched']);
    const next = watching();
    await next.began;
    expect(next.changes).toEqual([`binfmt left ${MODULE}`]);
    expect(await shown()).toBe('patched: enabled');
    await next.end();
    expect(await revert()).toMatchObject(complete);
    expect(await revertFromKernel({ ...subjectOptions(), patch: 'dummy' })).toMatchObject(complete);
    expect(await lab.guest.run('insmod /lib/dummy.ko && ls /sys/class/net; rmmod dummy')).toContain('dummy0');
    expect(await shown()).toBe('enabled');
    await expectQuiet();
  });

  it('leaves a guest that loads and unloads as ever when its watch is killed', async () => {
    expect((await unload()).trim()).toBe('0');
    expect(await apply(patch, { late: true })).toMatchObject(complete);
    await lab.killedAt('"step":"watch"', 100, 'watch');
    await load();
    expect(await shown()).toBe('enabled');
    // Killed as soon as it has patched the module that is being loaded; its first one it finds loaded.
    let isOver = false;
    const killed = lab.killedAt('"change":"patched"', 0, 'watch').then(() => {
      isOver = true;
    });
    while (!isOver) {
      await unload();
      await load();
      await pause(300);
    }
    await killed;
    expect([await shown(), ...(await states())]).toEqual(['patched: enabled', 'redirected', 'patched']);
    expect(await revert()).toMatchObject(complete);
    expect(await shown()).toBe('enabled');
    await expectQuiet();
  });

  it('has its callbacks run where the kernel runs them; a veto refuses the module and keeps the patch', async () => {
    const withCallbacks = (...flags: string[]) => {
      const objects = [
        compile('callbacks.c', '-DPREFIX="both "', '-DCALLBACKS="kernel"'),
        compile('binfmt.c', '-DCALLBACKS', ...flags),
      ];
      for (const object of objects)
        expect(build(object, '--module', moduleFile(lab.guest.kernel)).code).toBe(0);
      const combined = join(folder, `both${flags.join('')}.lgp`);
      const inputs = objects.map((object) => `${object}.lgp`);
      expect(livegraft('combine', ...inputs, '-o', combined, '--name', 'both').code).toBe(0);
      return combined;
    };
    const both = withCallbacks();
    const undo = () => revertFromKernel({ ...subjectOptions(), patch: 'both' });
    const ran = async () =>
      (await lab.guest.run('dmesg -c | grep -E "callback |BUG:|WARNING:|Oops"'))
        .split('\n')
        .flatMap((line) => /(?:callback |(?=BUG:|WARNING:|Oops))(.*)/.exec(line)?.[1] ?? [])
        .map((text) => text.replace(', enabled 1', ''));
    const [patched, unpatched] = [
      ['pre_patch', 'post_patch'],
      ['pre_unpatch', 'post_unpatch'],
    ];
    const of = (kinds: readonly string[], ...objects: string[]) =>
      kinds.flatMap((kind) => objects.map((object) => `${object} ${kind}`));
    await unload();
    await load();
    await ran();

    // Target before.
    expect(await apply(both)).toMatchObject(complete);
    expect(await ran()).toEqual(of(patched, 'kernel', 'module'));
    expect(await undo()).toMatchObject(complete);
    expect(await ran()).toEqual(of(unpatched, 'kernel', 'module'));

    // Never present.
    expect((await unload()).trim()).toBe('0');
    expect(await apply(both)).toMatchObject(complete);
    expect(await ran()).toEqual(of(patched, 'kernel'));

    // Arrives and leaves, arrives again; callbacks use its variables before its init code runs, and behind its exit code.
    const watch = watching();
    await watch.began;
    await load();
    expect([await shown(), await ran()]).toEqual(['patched: enabled', of(patched, 'module')]);
    expect((await unload()).trim()).toBe('0');
    expect(await ran()).toEqual(of(unpatched, 'module'));
    await load();
    await watch.end();
    expect([await shown(), await ran()]).toEqual(['patched: enabled', of(patched, 'module')]);
    // Leaves first, unwatched: there is nobody to run them, and they begin anew with the next one.
    expect((await unload()).trim()).toBe('0');
    await load();
    expect(await apply(both)).toMatchObject(complete);
    expect(await ran()).toEqual(of(patched, 'module'));
    expect(await undo()).toMatchObject(complete);
    expect(await ran()).toEqual(of(unpatched, 'kernel', 'module'));

    const vetoing = withCallbacks('-DVETO=-19');
    await expect(apply(vetoing)).rejects.toMatchObject({ code: 'callback-veto' });
    expect(await ran()).toEqual(['kernel pre_patch', 'module pre_patch', 'kernel post_unpatch']);
    expect((await unload()).trim()).toBe('0');
    expect(await apply(vetoing)).toMatchObject(complete);
    const other = watching();
    await other.began;
    await load();
    await other.end();
    expect(other.changes).toEqual([`both refused ${MODULE}`]);
    expect([await shown(), await ran()]).toEqual(['enabled', [...of(patched, 'kernel'), 'module pre_patch']]);
    expect(await undo()).toMatchObject(complete);
    expect(await ran()).toEqual(of(unpatched, 'kernel'));
    await expectQuiet();
  });

  it('takes up what a killed watch has left between a pre-patch callback and the patch, for the module it ran for', async () => {
    const object = compile('binfmt.c', '-DCALLBACKS', '-DSLOW=1500');
    const built = build(object, '--module', moduleFile(lab.guest.kernel), '--name', 'slow');
    expect(built.code).toBe(0);
    const undo = () => revertFromKernel({ ...subjectOptions(), patch: 'slow' });
    const ran = async () =>
      [...(await lab.guest.run('dmesg -c')).matchAll(/callback module (\w+)|BUG:|WARNING:|Oops/g)].map(
        ([text, kind]) => kind ?? text,
      );
    /** The module is there, unpatched, and its pre-patch callback has run. */
    const leave = async () => {
      const watch = startLivegraft('watch', ...lab.subject(), '--json');
      while (!watch.output().includes('"step":"watch"')) await pause(50);
      await lab.guest.run(
        `(insmod /lib/${MODULE}.ko; mount -t ${MODULE} none /tmp/m; touch /tmp/loaded) & sleep 0`,
      );
      await lab.guest.run('while ! dmesg | grep -q "callback module pre_patch"; do sleep 0.1; done', 60_000);
      watch.signal('SIGKILL');
      await watch.done;
      await lab.guest.run('while ! rm /tmp/loaded 2> /dev/null; do sleep 0.1; done', 60_000);
      expect([await shown(), ...(await states())]).toEqual(['enabled', undefined, 'unpatched']);
      expect(await ran()).toEqual(['pre_patch']);
    };
    expect((await unload()).trim()).toBe('0');
    await ran();

    // Given up: what the callback did is undone.
    expect(await apply(`${object}.lgp`, { late: true })).toMatchObject(complete);
    await leave();
    expect(await undo()).toMatchObject(complete);
    expect(await ran()).toEqual(['post_unpatch']);
    await expect(undo()).rejects.toMatchObject({ code: 'no-such-patch' });
    expect((await unload()).trim()).toBe('0');

    // Gone on with, by hand and by the next watch.
    for (const goOn of [
      () => apply(`${object}.lgp`),
      async () => {
        const watch = watching();
        await watch.began;
        await watch.end();
      },
    ]) {
      expect(await apply(`${object}.lgp`, { late: true })).toMatchObject(complete);
      await leave();
      await goOn();
      expect([await shown(), await ran()]).toEqual(['patched: enabled', ['post_patch']]);
      expect(await undo()).toMatchObject(complete);
      expect(await ran()).toEqual(['pre_unpatch', 'post_unpatch']);
      expect((await unload()).trim()).toBe('0');
    }

    // It has run for that module, and not for the next one, which may lie at the very same place.
    expect(await apply(`${object}.lgp`, { late: true })).toMatchObject(complete);
    await leave();
    expect((await unload()).trim()).toBe('0');
    await load();
    expect(await apply(`${object}.lgp`)).toMatchObject(complete);
    expect([await shown(), await ran()]).toEqual(['patched: enabled', ['pre_patch', 'post_patch']]);
    expect(await undo()).toMatchObject(complete);
    expect(await ran()).toEqual(['pre_unpatch', 'post_unpatch']);
    expect(await shown()).toBe('enabled');
  });

  it("comes out as with the kernel's own livepatch, loaded before the patch and after it", async () => {
    const klp = join(folder, 'binfmt.ko');
    const flags = ['--module', moduleFile(lab.guest.kernel), '--format', 'klp', '-o', klp];
    expect(
      livegraft('build', '--replacement', compile('binfmt.c'), '--target', lab.vmlinux, ...flags).code,
    ).toBe(0);
    const file = parseElf(readFileSync(klp), klp);
    const tables = file.sections
      .map(({ name }) => name)
      .filter((name) => name.startsWith('.klp.rela.binfmt_misc.'));
    expect(tables).toHaveLength(1);
    expect(file.symbols.map(({ name }) => name)).toContain('.klp.sym.binfmt_misc.enabled,0');
    await lab.guest.run('rm -f /tmp/klp');
    const packed = gzipSync(readFileSync(klp)).toString('base64');
    for (let at = 0; at < packed.length; at += 1000)
      await lab.guest.run(`printf %s ${packed.slice(at, at + 1000)} >> /tmp/klp`);
    await lab.guest.run('base64 -d /tmp/klp | gunzip > /tmp/binfmt.ko');
    const [state, settled] = [
      '/sys/kernel/livepatch/livegraft_binfmt',
      'while [ "$(cat $S/transition)" != 0 ]; do sleep 0.1; done',
    ];
    const kernels = {
      patch: () => lab.guest.run(`insmod /tmp/binfmt.ko; S=${state}; ${settled}`, 60_000),
      unpatch: () =>
        lab.guest.run(
          `echo 0 > ${state}/enabled; while [ -e ${state} ]; do sleep 0.1; done; rmmod livegraft_binfmt`,
          60_000,
        ),
    };
    let watch: ReturnType<typeof watching> | undefined;
    const ours = {
      patch: async () => {
        await apply(patch, { late: true });
        watch = watching();
        await watch.began;
      },
      unpatch: async () => {
        await watch?.end();
        await revert();
      },
    };
    const seen: string[][] = [];
    for (const engine of [ours, kernels]) {
      const texts: string[] = [];
      await engine.patch();
      texts.push(await shown());
      await engine.unpatch();
      await unload();
      await engine.patch();
      await load();
      texts.push(await shown());
      // Up to 6.2 the kernel does not clear what it has relocated when a module leaves, and refuses it when it comes back (0c05e7bd2d01).
      if (engine === kernels && lab.guest.kernel.release.startsWith('6.1.')) {
        await unload();
        expect(await lab.guest.run(`insmod /lib/${MODULE}.ko 2>&1; dmesg | tail -5`)).toContain(
          'invalid relocation target',
        );
      }
      await engine.unpatch();
      if (engine === kernels) await load();
      seen.push([...texts, await shown()]);
    }
    expect(seen[0]).toEqual(['patched: enabled', 'patched: enabled', 'enabled']);
    expect(seen[1]).toEqual(seen[0]);
    await expectQuiet();
  });

  it('is redirected over its first instructions where it was compiled without ftrace, loaded before and later', async () => {
    const object = parseElf(readFileSync(compile('errno.c')), 'errno.o');
    const module = readModuleImage(parseElf(readFileSync(injectFile(lab.guest.kernel)), 'inject.ko'));
    const about = { name: 'errno', description: '', createdAt: '', digest: sha256 };
    const { bytes } = buildReplacement(object, lab.image, { ...about, modules: [module] });
    const path = join(folder, 'errno.lgp');
    writeFileSync(path, bytes);
    expect(() => writeKlpModule(parsePatch(bytes, path, sha256), lab.image)).toThrow("ftrace can't redirect");
    const loadInject = () => lab.guest.run('insmod /lib/inject.ko; insmod /lib/pm-inject.ko');
    const error = '/tmp/d/notifier-error-inject/pm/actions/PM_SUSPEND_PREPARE/error';
    const read = async () => (await lab.guest.run(`cat ${error}`)).trim();
    const undo = () => revertFromKernel({ ...subjectOptions(), patch: 'errno' });
    await lab.guest.run('mkdir -p /tmp/d; mount -t debugfs none /tmp/d');
    await loadInject();
    expect(await read()).toBe('0');
    expect(await apply(path)).toMatchObject(complete);
    expect(await read()).toBe('-42');
    await lab.guest.run(`echo -5 > ${error}`);
    expect(await read()).toBe('-47');
    expect(await undo()).toMatchObject(complete);
    expect(await read()).toBe('-5');

    await lab.guest.run('rmmod pm_notifier_error_inject notifier_error_inject');
    expect(await apply(path, { late: true })).toMatchObject(complete);
    const watch = watching();
    await watch.began;
    await loadInject();
    await watch.end();
    expect([watch.changes, await read()]).toEqual([['errno patched notifier_error_inject'], '-42']);
    expect(await undo()).toMatchObject(complete);
    expect(await read()).toBe('0');
    await expectQuiet();
  });

  it('is refused in another build of the module, and in one for another kernel', async () => {
    const file = readFileSync(moduleFile(lab.guest.kernel));
    const module = readModuleImage(parseElf(file, MODULE));
    const object = parseElf(readFileSync(compile('binfmt.c')), 'binfmt.o');
    const about = { name: 'other', description: '', createdAt: '', digest: sha256 };
    const other = join(folder, 'other-module.lgp');
    const otherBuild = { ...module, buildId: module.buildId.replace(/^../, '00') };
    writeFileSync(other, buildReplacement(object, lab.image, { ...about, modules: [otherBuild] }).bytes);
    await expect(apply(other)).rejects.toMatchObject({ code: 'wrong-target', details: { module: MODULE } });
    const otherKernel = { ...module, release: '5.10.0-1-amd64' };
    expect(() => buildReplacement(object, lab.image, { ...about, modules: [otherKernel] })).toThrow(
      '5.10.0-1-amd64',
    );
    expect(await shown()).toBe('enabled');
  });
});
