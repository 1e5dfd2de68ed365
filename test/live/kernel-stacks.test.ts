import { beforeAll, describe, expect, it } from 'vitest';
import { applyToKernel, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { kernelStatus } from '../../src/cli/kernel-views.js';
import { KernelLab } from '../support/kernel-lab.js';

const lab = new KernelLab();
const { entryOf, expectQuiet, killedAt, patchOf } = lab;

const subject = () => ({ ...lab.options(lab.guest.gdb, () => {}), guestMemory: lab.guest.memoryFile });
const apply = (patchPath: string, replace = false) => applyToKernel({ ...subject(), patchPath, replace });
const revert = (patch?: string) => revertFromKernel({ ...subject(), patch });
const complete = (direction: 'patch' | 'unpatch') => ({ result: { kind: 'complete', direction } });
const names = async () => (await kernelStatus(subject(), false)).patches.map(({ name }) => name);
const entries = async () => [await entryOf('cmdline_proc_show'), await entryOf('__x64_sys_getpid')];
const cmdline = () => lab.guest.run('cat /proc/cmdline');

describe('several patches of a running kernel', () => {
  const [FIRST, SECOND, ALL] = ['first: ', 'second: ', 'all: '].map(
    (prefix) => `cmdline-DPREFIX="${prefix}"`,
  ) as [string, string, string];
  let [first, second, all, other, plain] = ['', '', '', '', ''];
  let before: readonly string[];
  beforeAll(async () => {
    [first, second, all] = ['first: ', 'second: ', 'all: '].map((prefix) =>
      patchOf('cmdline.c', `-DPREFIX="${prefix}"`),
    ) as [string, string, string];
    other = patchOf('getpid.c');
    plain = await cmdline();
    before = await entries();
  });

  it('of one function lie on each other, and the top one runs', async () => {
    expect(await apply(first)).toMatchObject(complete('patch'));
    expect(await apply(second)).toMatchObject(complete('patch'));
    expect(await cmdline()).toBe(`second: ${plain}`);
    const { patches } = await kernelStatus(subject(), false);
    expect(patches).toMatchObject([
      { name: FIRST, functions: [{ entry: 'redirected' }] },
      { name: SECOND, functions: [{ entry: 'redirected' }] },
    ]);
    await expect(revert(FIRST)).rejects.toMatchObject({ code: 'not-on-top' });
    expect(await revert()).toMatchObject(complete('unpatch'));
    expect(await cmdline()).toBe(`first: ${plain}`);
    await expectQuiet();
  });

  it('of different functions are removed in any order', async () => {
    expect(await apply(other)).toMatchObject(complete('patch'));
    expect(await revert(FIRST)).toMatchObject(complete('unpatch'));
    expect(await cmdline()).toBe(plain);
    // Back again it is the newest, in the memory that it had.
    expect(await apply(first)).toMatchObject(complete('patch'));
    expect(await names()).toEqual(['getpid', FIRST]);
    expect(await cmdline()).toBe(`first: ${plain}`);
  });

  it('are still there when a cumulative one is killed in mid-transition and taken back', async () => {
    const patched = await entries();
    await killedAt('"taskSwitched"', 0, 'apply', all, '--replace');
    expect([`first: ${plain}`, `all: ${plain}`]).toContain(await cmdline());
    expect(await revert(ALL)).toMatchObject(complete('unpatch'));
    expect(await names()).toEqual(['getpid', FIRST]);
    expect(await entries()).toEqual(patched);
    expect(await cmdline()).toBe(`first: ${plain}`);
    await expectQuiet();
  });

  it('are replaced by a cumulative one in one transition, and the functions that it does not change go back', async () => {
    expect(await apply(all, true)).toMatchObject(complete('patch'));
    expect(await cmdline()).toBe(`all: ${plain}`);
    expect(await names()).toEqual([ALL]);
    expect((await entries())[1]).toBe(before[1]);
    expect(await revert()).toMatchObject(complete('unpatch'));
    expect(await entries()).toEqual(before);
    expect(await cmdline()).toBe(plain);
    await expectQuiet();
  });
});
