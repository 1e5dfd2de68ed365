import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { sha256 } from '../../src/build/from-objects.js';
import { buildReplacement } from '../../src/build/kernel-replacement.js';
import { applyToKernel, kernelStatus, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { parseElf } from '../../src/elf/reader.js';
import { readModuleImage } from '../../src/kernel-image/module-image.js';
import type { KernelPackage } from '../support/guest.js';
import { KernelLab } from '../support/kernel-lab.js';

/** A module with a function behind a file. */
const MODULE = 'binfmt_misc';
const moduleFile = ({ modules }: KernelPackage) => join(modules, `kernel/fs/${MODULE}.ko`);
const lab = new KernelLab({
  files: (kernel) => [{ path: `lib/${MODULE}.ko`, data: readFileSync(moduleFile(kernel)) }],
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
  const entry = async () => {
    const { patches } = await kernelStatus(subjectOptions(), false);
    return patches.flatMap(({ functions }) => functions.filter(({ object }) => object === MODULE))[0]?.entry;
  };
  const load = () => lab.guest.run(`insmod /lib/${MODULE}.ko; mount -t ${MODULE} none /tmp/m`);
  const unload = () => lab.guest.run(`umount /tmp/m; rmmod ${MODULE}; grep -c ${MODULE} /proc/modules`);
  const shown = async () => (await lab.guest.run('cat /tmp/m/status')).trim();
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
    expect([await shown(), await entry()]).toEqual(['patched: enabled', 'redirected']);
    await lab.guest.run('echo 0 > /tmp/m/status');
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
