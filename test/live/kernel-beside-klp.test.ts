import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { errorOf, KernelLab } from '../support/kernel-lab.js';
import { livegraft } from '../support/live.js';

/** livegraft and the kernel's own livepatch in one kernel: what each makes of what the other has put there. */
const lab: KernelLab = new KernelLab({
  files: ({ vmlinuz }) =>
    ['cmdline', 'getpid'].map((name) => {
      const object = lab.compile(`${name}.c`);
      const args = ['build', '--replacement', object, '--target', vmlinuz, '--format', 'klp'];
      const built = livegraft(...args, '-o', `${object}.ko`);
      if (built.code !== 0) throw new Error(built.stderr);
      return { path: `lib/${name}.ko`, data: readFileSync(`${object}.ko`) };
    }),
});
const { run, patchOf, entryOf } = lab;

const stateOf = (name: string) => `/sys/kernel/livepatch/livegraft_${name}`;
const insert = (name: string) => lab.guest.run(`insmod /lib/${name}.ko 2>&1 && echo loaded`);
const settle = (name: string) =>
  lab.guest.run(`while [ "$(cat ${stateOf(name)}/transition)" != 0 ]; do sleep 0.2; done`, 60_000);
const remove = (name: string) =>
  lab.guest.run(
    `echo 0 > ${stateOf(name)}/enabled; while [ -e ${stateOf(name)} ]; do sleep 0.2; done; rmmod livegraft_${name}`,
    60_000,
  );
const apply = (patch: string, timeout = '30') => errorOf(run('apply', patch, '--timeout', timeout).lines);
const revert = (name: string) => errorOf(run('revert', name, '--timeout', '60').lines);
const text = () => lab.guest.run('cat /proc/cmdline');

describe('a kernel that livepatches itself', () => {
  it('keeps a function for itself while it does, and leaves it as it was', async () => {
    const patch = patchOf('cmdline.c');
    const [before, entry] = [await text(), await entryOf('cmdline_proc_show')];
    expect(await insert('cmdline')).toContain('loaded');
    // In its transition, most likely, and behind it.
    expect(apply(patch)).toMatchObject({ event: 'error', code: 'no-fentry' });
    await settle('cmdline');
    expect(apply(patch)).toMatchObject({ event: 'error', code: 'no-fentry' });
    expect(await text()).toBe(`patched: ${before}`);
    await remove('cmdline');
    expect([await text(), await entryOf('cmdline_proc_show')]).toEqual([before, entry]);

    expect(apply(patch)).toMatchObject({ result: { kind: 'complete' } });
    expect(await text()).toBe(`patched: ${before}`);
    expect(revert('cmdline')).toMatchObject({ result: { kind: 'complete' } });
    expect([await text(), await entryOf('cmdline_proc_show')]).toEqual([before, entry]);
  });

  it('changes another function while a transition of livegraft waits, and both come to their end', async () => {
    // The kernel's oom_reaper never leaves its function.
    const busy = patchOf('callbacks.c', '-DPREFIX="busy "', '-DBUSY');
    expect(apply(busy, '2')).toMatchObject({ result: { kind: 'incomplete' } });
    expect(await insert('getpid')).toContain('loaded');
    await settle('getpid');
    await remove('getpid');
    expect(errorOf(run('revert', '--timeout', '60').lines)).toMatchObject({
      result: { kind: 'complete', direction: 'unpatch' },
    });
    await lab.expectQuiet();
  });

  it('is refused a function that livegraft has, which stays patched and can be reverted', async () => {
    const [before, entry] = [await text(), await entryOf('cmdline_proc_show')];
    expect(apply(patchOf('cmdline.c'))).toMatchObject({ result: { kind: 'complete' } });
    const patched = await entryOf('cmdline_proc_show');
    expect(await insert('cmdline')).not.toContain('loaded');
    expect(await lab.guest.run(`ls -d ${stateOf('cmdline')} 2>&1`)).toContain('No such file');
    // Its ftrace finds a jump where it expects its nop, writes nothing, and gives up for good (ftrace_bug).
    expect(await lab.guest.run('dmesg | grep -c "ftrace failed to modify"; true')).toBe('1\n');
    expect([await text(), await entryOf('cmdline_proc_show')]).toEqual([`patched: ${before}`, patched]);
    const status = jsonLineSchema.parse(run('status').lines.at(-1));
    expect(status).toMatchObject({ patches: [{ name: 'cmdline', functions: [{ entry: 'redirected' }] }] });
    expect(revert('cmdline')).toMatchObject({ result: { kind: 'complete' } });
    expect([await text(), await entryOf('cmdline_proc_show')]).toEqual([before, entry]);
  });
});
