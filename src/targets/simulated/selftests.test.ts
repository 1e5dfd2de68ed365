import { describe, expect, it } from 'vitest';
import { patchOf, Stage } from '../../../test/simulation/stage.js';

/**
 * The scenarios of the kernel's selftests (tools/testing/selftests/livepatch) as behaviours of the engine, under their names
 * there. The oracle watches each. What the process target shows of them for real is in test/live/operations.test.ts.
 */
const busyIn = (id: number, name: string) =>
  expect.objectContaining({
    task: String(id),
    reason: expect.objectContaining({ kind: 'busy', function: name }),
  });
const only = (version: string | undefined) => new Set([version]);

describe('test-livepatch', () => {
  it('basic function patching: the new version runs, and the original again afterwards', async () => {
    const stage = new Stage();
    const patch = patchOf('livepatch', ['f']);
    expect(stage.versionsOf('f')).toEqual(only(undefined));
    expect(await stage.enable(patch)).toMatchObject({ kind: 'complete', direction: 'patch' });
    expect(stage.versionsOf('f')).toEqual(only('livepatch'));
    expect(stage.versionsOf('g')).toEqual(only(undefined));
    stage.machine.oracle.expectAtRest([patch]);
    expect(await stage.disable(patch)).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    expect(stage.versionsOf('f')).toEqual(only(undefined));
    stage.machine.oracle.expectAtRest([]);
  });

  it('multiple livepatches: two are stacked, and peeled one by one', async () => {
    const stage = new Stage();
    const [first, second] = [patchOf('first', ['f', 'g']), patchOf('second', ['g', 'h'])];
    await stage.enable(first);
    await stage.enable(second);
    stage.machine.oracle.expectAtRest([first, second]);
    expect(['f', 'g', 'h'].map((name) => stage.versionsOf(name))).toEqual([
      only('first'),
      only('second'),
      only('second'),
    ]);
    // What lies below another one stays.
    expect(stage.machine.versions.above('first')).toEqual([second]);
    expect(stage.machine.versions.above('second')).toEqual([]);
    await stage.disable(second);
    stage.machine.oracle.expectAtRest([first]);
    expect(['f', 'g', 'h'].map((name) => stage.versionsOf(name))).toEqual([
      only('first'),
      only('first'),
      only(undefined),
    ]);
    await stage.disable(first);
    stage.machine.oracle.expectAtRest([]);
    expect(stage.versionsOf('g')).toEqual(only(undefined));
  });

  it('atomic replace livepatch: only the new one is left, and the old ones can be removed and come anew', async () => {
    const stage = new Stage();
    const older = [patchOf('first', ['f', 'g']), patchOf('second', ['g', 'h']), patchOf('third', ['leaf'])];
    for (const patch of older) await stage.enable(patch);
    const replace = patchOf('replace', ['h'], true);
    expect(await stage.enable(replace)).toMatchObject({ kind: 'complete', direction: 'patch' });
    stage.machine.oracle.expectAtRest([replace]);
    expect(['f', 'g', 'h', 'leaf'].map((name) => stage.versionsOf(name))).toEqual([
      only(undefined),
      only(undefined),
      only('replace'),
      only(undefined),
    ]);
    for (const patch of older) expect(stage.attributesOf(patch)).toMatchObject({ enabled: 0, patched: 0 });
    await stage.disable(replace);
    stage.machine.oracle.expectAtRest([]);
    await stage.enable(older[1] as (typeof older)[0]);
    expect(stage.versionsOf('g')).toEqual(only('second'));
  });

  it('atomic replace livepatch: turned around in mid-transition, leaves the older ones as they were', async () => {
    const stage = new Stage();
    const [first, second] = [patchOf('first', ['f', 'g']), patchOf('second', ['g'])];
    await stage.enable(first);
    await stage.enable(second);
    const task = stage.park('g');
    const replace = patchOf('replace', ['f'], true);
    expect(await stage.enable(replace, { timeoutMs: 200 })).toMatchObject({
      kind: 'incomplete',
      stragglers: expect.arrayContaining([busyIn(task.id, 'g')]),
    });
    expect(await stage.disable(replace)).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    stage.machine.oracle.expectAtRest([first, second]);
    expect(stage.versionsOf('g')).toEqual(only('second'));
  });
});

describe('test-callbacks, without the callbacks', () => {
  it('multiple target modules: a busy target delays the transition until it returns', async () => {
    const stage = new Stage();
    const task = stage.park('f');
    const patch = patchOf('livepatch', ['f', 'g']);
    let refusals = 0;
    const result = await stage.enable(patch, {
      onWaiting: (_, id) => {
        if (id === String(task.id) && ++refusals === 5) stage.letOut(task);
      },
    });
    expect(result).toMatchObject({ kind: 'complete', direction: 'patch' });
    expect(refusals).toBeGreaterThanOrEqual(5);
    expect(stage.versionsOf('f')).toEqual(only('livepatch'));
  });

  it('busy target module: stalls the transition, and disable reverses it', async () => {
    const stage = new Stage();
    const task = stage.park('f');
    const patch = patchOf('livepatch', ['f', 'g']);
    expect(await stage.enable(patch, { timeoutMs: 200 })).toMatchObject({
      kind: 'incomplete',
      stragglers: expect.arrayContaining([busyIn(task.id, 'f')]),
    });
    expect(stage.versionsOf('g')).toEqual(new Set([undefined, 'livepatch']));
    // The task is still where it was.
    expect(await stage.disable(patch)).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    stage.machine.oracle.expectAtRest([]);
    expect(stage.versionsOf('g')).toEqual(only(undefined));
  });

  it('busy target module: is turned around while the engine waits for it', async () => {
    const stage = new Stage();
    const task = stage.park('f');
    const patch = patchOf('livepatch', ['f']);
    const result = await stage.enable(patch, {
      onWaiting: (control, id) => {
        if (id === String(task.id)) control.reverse('disabled');
      },
    });
    expect(result).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    stage.machine.oracle.expectAtRest([]);
  });
});

describe('test-sysfs', () => {
  it('sysfs test: enabled, transition and patched go from 0 to 1 and back', async () => {
    const stage = new Stage();
    const patch = patchOf('livepatch', ['f']);
    expect(stage.attributesOf(patch)).toEqual({ enabled: 0, transition: 0, patched: 0, stackOrder: 0 });
    const old = stage.park('f');
    await stage.enable(patch, { timeoutMs: 200 });
    expect(stage.attributesOf(patch)).toEqual({ enabled: 1, transition: 1, patched: 1, stackOrder: 1 });
    stage.letOut(old);
    await stage.enable(patch);
    expect(stage.attributesOf(patch)).toEqual({ enabled: 1, transition: 0, patched: 1, stackOrder: 1 });
    const task = stage.park('f');
    await stage.disable(patch, { timeoutMs: 200 });
    expect(stage.attributesOf(patch)).toEqual({ enabled: 0, transition: 1, patched: 1, stackOrder: 1 });
    stage.letOut(task);
    await stage.disable(patch);
    expect(stage.attributesOf(patch)).toEqual({ enabled: 0, transition: 0, patched: 0, stackOrder: 0 });
  });

  it('sysfs test stack_order value: is renumbered after a removal', async () => {
    const stage = new Stage();
    const patches = [patchOf('one', ['f']), patchOf('two', ['g']), patchOf('three', ['h'])];
    const orders = () => patches.map((patch) => stage.attributesOf(patch).stackOrder);
    for (const patch of patches) await stage.enable(patch);
    expect(orders()).toEqual([1, 2, 3]);
    // Nothing lies upon it.
    await stage.disable(patches[1] as (typeof patches)[0]);
    expect(orders()).toEqual([1, 0, 2]);
    await stage.enable(patches[1] as (typeof patches)[0]);
    expect(orders()).toEqual([1, 3, 2]);
    await stage.disable(patches[0] as (typeof patches)[0]);
    expect(orders()).toEqual([0, 2, 1]);
  });
});

describe('test-syscall', () => {
  it.each(['hybrid', 'lazy'] as const)(
    'patch getpid syscall while being heavily hammered: every one of many tasks migrates (model %s)',
    async (model) => {
      const tasks = 200;
      const stage = new Stage({ tasks, model, calls: ['f'] });
      const patch = patchOf('livepatch', ['f']);
      const result = await stage.enable(patch);
      expect(result).toMatchObject({ kind: 'complete', direction: 'patch', forced: false });
      expect(stage.machine.alive.length).toBeGreaterThan(tasks / 2);
      expect(stage.versionsOf('f')).toEqual(only('livepatch'));
      expect(await stage.disable(patch)).toMatchObject({ kind: 'complete', direction: 'unpatch' });
      stage.machine.oracle.expectAtRest([]);
    },
  );
});
