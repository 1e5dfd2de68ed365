import { beforeAll, describe, expect, it } from 'vitest';
import { applyToKernel, revertFromKernel } from '../../src/cli/kernel-operations.js';
import type { OperationEvent } from '../../src/cli/operations.js';
import { KernelLab } from '../support/kernel-lab.js';

/** The scenarios of the kernel's livepatch selftests that need callbacks or states, by their names there, in a running kernel. */
const lab = new KernelLab();
const { entryOf, expectQuiet, killedAt, patchOf } = lab;

const events: OperationEvent[] = [];
const subject = () => ({
  ...lab.options(lab.guest.gdb, () => {}),
  guestMemory: lab.guest.memoryFile,
  onEvent: (event: OperationEvent) => events.push(event),
});
const apply = (patchPath: string, options = {}) => applyToKernel({ ...subject(), ...options, patchPath });
const revert = (options = {}) => revertFromKernel({ ...subject(), patch: undefined, ...options });
const complete = (direction: 'patch' | 'unpatch') => ({ result: { kind: 'complete', direction } });
const patch = (name: string, ...flags: string[]) =>
  patchOf('callbacks.c', `-DPREFIX="${name} "`, `-DCALLBACKS="${name}"`, ...flags);
const cmdline = async () => (await lab.guest.run('cat /proc/cmdline')).trim();
/** What callbacks have printed since this was asked last, in their order. */
const callbacks = async () => {
  const log = await lab.guest.run('dmesg -c | grep -E "callback |BUG:|WARNING:|Oops"');
  return log.split('\n').flatMap((line) => /(?:callback|BUG:|WARNING:|Oops).*/.exec(line) ?? []);
};
const ran = (name: string, ...kinds: string[]) => kinds.map((kind) => `callback ${name} ${kind}`);

let plain: string;
let entry: string;
beforeAll(async () => {
  plain = await cmdline();
  entry = await entryOf('cmdline_proc_show');
  await callbacks();
});

describe('callbacks', () => {
  it('patch and restore: each has its turn, in the kernel itself, also without shared memory', async () => {
    const one = patch('one');
    expect(await apply(one, { guestMemory: undefined })).toMatchObject(complete('patch'));
    expect(events).toContainEqual(
      expect.objectContaining({
        kind: 'callback',
        object: 'vmlinux',
        callback: 'prePatch',
        failure: undefined,
      }),
    );
    expect(await cmdline()).toBe(`one ${plain}`);
    expect(await callbacks()).toEqual(ran('one', 'pre_patch', 'post_patch'));
    expect(await revert()).toMatchObject(complete('unpatch'));
    expect(await callbacks()).toEqual(ran('one', 'pre_unpatch', 'post_unpatch'));
    expect(await entryOf('cmdline_proc_show')).toBe(entry);
  });

  it('pre-patch veto: the patch is refused and cleanly cancelled', async () => {
    const vetoing = patch('vetoing', '-DVETO=-19');
    await expect(apply(vetoing)).rejects.toMatchObject({
      code: 'callback-veto',
      message: expect.stringContaining('returned -19'),
    });
    expect(await callbacks()).toEqual(ran('vetoing', 'pre_patch'));
    expect(await entryOf('cmdline_proc_show')).toBe(entry);
    await expect(revert()).rejects.toMatchObject({ code: 'no-such-patch' });
  });

  it('two patches, peeled; atomic replace never runs the callbacks of the replaced patch', async () => {
    const [one, two] = [patch('one'), patch('two')];
    await apply(one);
    await apply(two);
    await revert();
    expect(await callbacks()).toEqual([
      ...ran('one', 'pre_patch', 'post_patch'),
      ...ran('two', 'pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'),
    ]);
    await apply(two, { replace: true });
    await revert();
    expect(await callbacks()).toEqual(ran('two', 'pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'));
    expect(await cmdline()).toBe(plain);
  });

  it('a busy target stalls: no post-patch runs, and a reverse skips pre-unpatch', async () => {
    // The kernel's oom_reaper never leaves its function.
    const stalled = patch('stalled', '-DBUSY');
    expect(await apply(stalled, { timeoutMs: 500 })).toMatchObject({ result: { kind: 'incomplete' } });
    // Going on where it was does not run it again.
    expect(await apply(stalled, { timeoutMs: 500 })).toMatchObject({ result: { kind: 'incomplete' } });
    expect(await revert()).toMatchObject(complete('unpatch'));
    expect(await callbacks()).toEqual(ran('stalled', 'pre_patch', 'post_unpatch'));
  });

  it('one that takes long is awaited, by a later run too, and runs once', async () => {
    const slow = patch('slow', '-DSLOW=3500');
    await expect(apply(slow)).rejects.toMatchObject({
      code: 'transition-interrupted',
      details: { cause: 'callback-running' },
    });
    expect(await apply(slow)).toMatchObject(complete('patch'));
    await revert();
    expect(await callbacks()).toEqual(ran('slow', 'pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'));
  });

  it('one that crashes is said, has had its turn, and the kernel lives on', async () => {
    events.length = 0;
    expect(await apply(patch('crashing', '-DCRASH'))).toMatchObject(complete('patch'));
    expect(events).toContainEqual(
      expect.objectContaining({ callback: 'postPatch', failure: expect.stringContaining('has ended') }),
    );
    expect(await cmdline()).toBe(`crashing ${plain}`);
    // The task that it took with it may have been the one that makes the others.
    await lab.makeCalls();
    expect(await revert()).toMatchObject(complete('unpatch'));
    const log = await callbacks();
    expect(log.filter((line) => line.startsWith('callback'))).toEqual(
      ran('crashing', 'pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'),
    );
    expect(log.filter((line) => !line.startsWith('callback'))).not.toEqual([]);
  });

  it('runs each once when livegraft is killed, and a later run goes on', async () => {
    const once = patch('once');
    // In front of the pre-patch callback or in it, and behind the pre-unpatch one.
    await killedAt('"install"', 0, 'apply', once);
    await apply(once).catch((error) => expect(error).toMatchObject({ code: 'already-applied' }));
    expect(await cmdline()).toBe(`once ${plain}`);
    await killedAt('"callback"', 0, 'revert');
    await revert().catch((error) => expect(error).toMatchObject({ code: 'no-such-patch' }));
    expect(await cmdline()).toBe(plain);
    expect(await callbacks()).toEqual(ran('once', 'pre_patch', 'post_patch', 'pre_unpatch', 'post_unpatch'));
  });
});

describe('states and shadow variables', () => {
  const timeout = async () => Number(await lab.guest.run('cat /proc/sys/kernel/panic'));

  it('change and restore; take-over by a cumulative patch; an older version is refused', async () => {
    const before = await timeout();
    const [first, second, stateless] = [
      patch('first', '-DSTATE=1'),
      patch('second', '-DSTATE=2'),
      patch('one'),
    ];
    await apply(first);
    expect(await timeout()).toBe(70);
    await expect(apply(stateless, { replace: true })).rejects.toMatchObject({ code: 'state-incompatible' });
    // The same version both ways, and a newer one.
    await apply(patch('same', '-DSTATE=1'));
    await revert();
    await apply(second, { replace: true });
    await expect(apply(first)).rejects.toMatchObject({ code: 'state-incompatible' });
    expect(await timeout()).toBe(70);
    await revert();
    expect(await timeout()).toBe(before);
    await callbacks();
  });

  it('shadow variables live from patch to patch until they are freed', async () => {
    const reads = async () => (await cmdline()).split(' ').slice(0, 2).join(' ');
    await apply(patch('one', '-DSHADOW'));
    expect([await reads(), await reads()]).toEqual(['one 1', 'one 2']);
    await apply(patch('two', '-DSHADOW', '-DLAST'));
    expect(await reads()).toBe('two 3');
    await revert();
    expect(await reads()).toBe('one 1');
    await revert();
    expect(await cmdline()).toBe(plain);
    await expectQuiet();
  });
});
