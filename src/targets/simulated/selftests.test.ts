import { describe, expect, it } from 'vitest';
import { patchOf, Stage, withCallbacks } from '../../../test/simulation/stage.js';
import type { SimulatedPatch } from './machine.js';
import { LIBRARY } from './objects.js';

/**
 * The scenarios of the kernel's selftests (tools/testing/selftests/livepatch) as behaviours of the engine, under their names
 * there. The oracle watches each. What the process target shows of them for real is in test/live/operations.test.ts and callbacks.test.ts.
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
    const stage = new Stage({ unreliableChance: 0 });
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

describe('test-callbacks', () => {
  const ranBy = (log: readonly string[], id: string) =>
    log.filter((line) => line.startsWith(`${id} `)).map((line) => line.slice(id.length + 1));

  it('target module before livepatch: each callback has its turn, once', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const patch = withCallbacks(patchOf('livepatch', ['f', 'g']), log);
    await stage.enable(patch);
    expect(ranBy(log, 'livepatch')).toEqual(['prePatch', 'postPatch']);
    await stage.disable(patch);
    expect(ranBy(log, 'livepatch').slice(2)).toEqual(['preUnpatch', 'postUnpatch']);
    stage.machine.oracle.expectAtRest([]);
  });

  it('pre-patch callback -ENODEV: the patch is refused, and cleanly cancelled', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const patch = withCallbacks(patchOf('livepatch', ['f', 'g']), log, -19);
    await expect(stage.enable(patch)).rejects.toMatchObject({ code: 'callback-veto' });
    expect(log).toEqual(['livepatch prePatch']);
    expect(stage.attributesOf(patch)).toEqual({ enabled: 0, transition: 0, patched: 0, stackOrder: 0 });
    expect(stage.versionsOf('f')).toEqual(only(undefined));
    stage.machine.oracle.expectAtRest([]);
  });

  it('multiple target modules: a busy target delays the transition, and post-patch with it', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const task = stage.park('f');
    const patch = withCallbacks(patchOf('livepatch', ['f', 'g']), log);
    let refusals = 0;
    const result = await stage.enable(patch, {
      onWaiting: (_, id) => {
        if (id !== String(task.id)) return;
        expect(log).toEqual(['livepatch prePatch']);
        if (++refusals === 5) stage.letOut(task);
      },
    });
    expect(result).toMatchObject({ kind: 'complete', direction: 'patch' });
    expect(refusals).toBeGreaterThanOrEqual(5);
    expect(log).toEqual(['livepatch prePatch', 'livepatch postPatch']);
    expect(stage.versionsOf('f')).toEqual(only('livepatch'));
  });

  it('busy target module: stalls, a second patch may not come, no post-patch runs, disable reverses and skips pre-unpatch', async () => {
    const log: string[] = [];
    const stage = new Stage({ unreliableChance: 0 });
    const task = stage.park('f');
    const patch = withCallbacks(patchOf('livepatch', ['f', 'g']), log);
    expect(await stage.enable(patch, { timeoutMs: 200 })).toMatchObject({
      kind: 'incomplete',
      stragglers: expect.arrayContaining([busyIn(task.id, 'f')]),
    });
    expect(stage.versionsOf('g')).toEqual(new Set([undefined, 'livepatch']));
    await expect(stage.enable(patchOf('second', ['h']))).rejects.toMatchObject({
      code: 'transition-in-progress',
    });
    // Going on runs none of them again.
    expect(await stage.enable(patch, { timeoutMs: 200 })).toMatchObject({ kind: 'incomplete' });
    expect(log).toEqual(['livepatch prePatch']);
    // The task is still where it was.
    expect(await stage.disable(patch)).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    expect(log).toEqual(['livepatch prePatch', 'livepatch postUnpatch']);
    stage.machine.oracle.expectAtRest([]);
    expect(stage.versionsOf('g')).toEqual(only(undefined));
  });

  it('busy target module: is turned around while the engine waits for it', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const task = stage.park('f');
    const result = await stage.enable(withCallbacks(patchOf('livepatch', ['f']), log), {
      onWaiting: (control, id) => {
        if (id === String(task.id)) control.reverse('disabled');
      },
    });
    expect(result).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    expect(log).toEqual(['livepatch prePatch', 'livepatch postUnpatch']);
    stage.machine.oracle.expectAtRest([]);
  });

  /** Of a patch of the program and its library, which stands for a module. */
  const both = (log: string[], answer = 0) =>
    withCallbacks(patchOf('livepatch', ['f', 'x']), log, answer, {}, LIBRARY);
  const turnsAt = (object: string) => ({
    patched: [`prePatch${object}`, `postPatch${object}`],
    unpatched: [`preUnpatch${object}`, `postUnpatch${object}`],
  });
  const [atProgram, atLibrary] = [turnsAt(''), turnsAt(' (library)')] as const;
  const since = (log: string[]) => ranBy(log.splice(0), 'livepatch');

  it('target module before livepatch: each object has each callback', async () => {
    const log: string[] = [];
    const stage = new Stage();
    stage.load();
    await stage.enable(both(log));
    expect(since(log)).toEqual(['prePatch', 'prePatch (library)', 'postPatch', 'postPatch (library)']);
    expect(stage.versionsOf('x')).toEqual(only('livepatch'));
    await stage.disable(stage.machine.patches[0] as SimulatedPatch);
    expect(since(log)).toEqual([
      'preUnpatch',
      'preUnpatch (library)',
      'postUnpatch',
      'postUnpatch (library)',
    ]);
    expect(stage.versionsOf('x')).toEqual(only(undefined));
    stage.machine.oracle.expectAtRest([]);
  });

  it('module_coming notifier: a target that comes later has its callbacks run as it comes', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const patch = both(log);
    await stage.enable(patch);
    expect(since(log)).toEqual(atProgram.patched);
    stage.load();
    expect(since(log)).toEqual(atLibrary.patched);
    expect(stage.versionsOf('x')).toEqual(only('livepatch'));
    stage.machine.oracle.expectAtRest([patch]);
    await stage.disable(patch);
    expect(new Set(since(log))).toEqual(new Set([...atProgram.unpatched, ...atLibrary.unpatched]));
    expect(stage.versionsOf('x')).toEqual(only(undefined));
  });

  it('module_going notifier: a target that leaves first has its callbacks run as it goes', async () => {
    const log: string[] = [];
    const stage = new Stage();
    stage.load();
    const patch = both(log);
    await stage.enable(patch);
    since(log);
    stage.unload();
    expect(since(log)).toEqual(atLibrary.unpatched);
    stage.machine.oracle.expectAtRest([patch]);
    await stage.disable(patch);
    expect(since(log)).toEqual(atProgram.unpatched);
    stage.machine.oracle.expectAtRest([]);
  });

  it('module_coming and module_going notifiers: a target that arrives and leaves has each, each time', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const patch = both(log);
    await stage.enable(patch);
    since(log);
    for (let round = 0; round < 2; round++) {
      stage.load();
      expect(stage.versionsOf('x')).toEqual(only('livepatch'));
      stage.unload();
      expect(since(log)).toEqual([...atLibrary.patched, ...atLibrary.unpatched]);
    }
    await stage.disable(patch);
    expect(since(log)).toEqual(atProgram.unpatched);
    stage.machine.oracle.expectAtRest([]);
  });

  it('module_coming and module_going notifiers: a target that is never present has none', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const patch = both(log);
    await stage.enable(patch);
    await stage.disable(patch);
    expect(since(log)).toEqual([...atProgram.patched, ...atProgram.unpatched]);
    stage.machine.oracle.expectAtRest([]);
  });

  it('module_coming notifier, pre-patch callback -ENODEV: the target is refused, the patch stays', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const patch = both(log, -19);
    await stage.enable(patch);
    since(log);
    stage.load();
    expect(since(log)).toEqual(['prePatch (library)']);
    expect(stage.versionsOf('x')).toEqual(only(undefined));
    expect(stage.versionsOf('f')).toEqual(only('livepatch'));
    expect(stage.machine.pending).toEqual([patch]);
    stage.unload();
    await stage.disable(patch);
    expect(since(log)).toEqual(atProgram.unpatched);
    stage.machine.oracle.expectAtRest([]);
  });

  it('busy target module: another target comes and goes meanwhile, no post-patch runs, disable skips pre-unpatch', async () => {
    const log: string[] = [];
    const stage = new Stage({ unreliableChance: 0 });
    const task = stage.park('f');
    const patch = both(log);
    expect(await stage.enable(patch, { timeoutMs: 200 })).toMatchObject({ kind: 'incomplete' });
    stage.load();
    // The task that is in the way sees the library as it sees the rest.
    expect(stage.versionsOf('x')).toEqual(new Set([undefined, 'livepatch']));
    stage.unload();
    expect(since(log)).toEqual(['prePatch', 'prePatch (library)', 'postUnpatch (library)']);
    expect(task.stack).toHaveLength(1);
    expect(await stage.disable(patch)).toMatchObject({ kind: 'complete', direction: 'unpatch' });
    expect(since(log)).toEqual(['postUnpatch']);
    stage.machine.oracle.expectAtRest([]);
  });

  it('multiple livepatches: each of two has its own callbacks', async () => {
    const log: string[] = [];
    const stage = new Stage();
    const first = withCallbacks(patchOf('first', ['f']), log);
    const second = withCallbacks(patchOf('second', ['f', 'g']), log);
    await stage.enable(first);
    await stage.enable(second);
    await stage.disable(second);
    await stage.disable(first);
    expect(log).toEqual([
      ...['first prePatch', 'first postPatch', 'second prePatch', 'second postPatch'],
      ...['second preUnpatch', 'second postUnpatch', 'first preUnpatch', 'first postUnpatch'],
    ]);
  });

  it('atomic replace: never runs the unpatch callbacks of the replaced patch', async () => {
    const log: string[] = [];
    const stage = new Stage();
    await stage.enable(withCallbacks(patchOf('old', ['f', 'g']), log));
    const replace = withCallbacks(patchOf('new', ['g'], true), log);
    await stage.enable(replace);
    await stage.disable(replace);
    expect(ranBy(log, 'old')).toEqual(['prePatch', 'postPatch']);
    expect(ranBy(log, 'new')).toEqual(['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch']);
  });
});

describe('test-state', () => {
  /** Patches that set the program's level to 10, keep what it was, and hand that on (as test_klp_state does). */
  function makeProgram() {
    const program = { level: 7, kept: new Map<string, number>() };
    const stage = new Stage();
    const withState = (id: string, version: number, replaces = true): SimulatedPatch => {
      const patch = { ...patchOf(id, ['f'], replaces), states: [{ id: 1, version }] };
      return withCallbacks(patch, [], 0, {
        prePatch: () => {
          const previous = stage.machine.patches.findLast((other) => other.states !== undefined);
          program.kept.set(id, program.kept.get(previous?.id ?? '') ?? program.level);
        },
        postPatch: () => {
          program.level = 10;
        },
        preUnpatch: () => {
          program.level = program.kept.get(id) ?? Number.NaN;
        },
        postUnpatch: () => program.kept.delete(id),
      });
    };
    return { program, stage, withState };
  }

  it('system state modification: a change, and the state as it was', async () => {
    const { program, stage, withState } = makeProgram();
    const patch = withState('state', 1);
    await stage.enable(patch);
    expect(program.level).toBe(10);
    await stage.disable(patch);
    expect(program.level).toBe(7);
    expect(program.kept.size).toBe(0);
  });

  it('taking over system state modification: a cumulative patch restores what the older one kept', async () => {
    const { program, stage, withState } = makeProgram();
    await stage.enable(withState('state', 1));
    const newer = withState('state2', 2);
    await stage.enable(newer);
    expect(program.level).toBe(10);
    stage.machine.oracle.expectAtRest([newer]);
    await stage.disable(newer);
    expect(program.level).toBe(7);
  });

  it('compatible cumulative livepatches: the same version replaces both ways', async () => {
    const { program, stage, withState } = makeProgram();
    const [second, third] = [withState('state2', 2), withState('state3', 2)];
    for (const patch of [second, third, second]) {
      await stage.enable(patch);
      stage.machine.oracle.expectAtRest([patch]);
    }
    await stage.disable(second);
    expect(program.level).toBe(7);
  });

  it('incompatible cumulative livepatches: an older version is refused, and one that does not know the state', async () => {
    const { program, stage, withState } = makeProgram();
    const newer = withState('state2', 2);
    await stage.enable(newer);
    for (const patch of [
      withState('state', 1),
      withState('stacked', 1, false),
      patchOf('other', ['g'], true),
    ])
      await expect(stage.enable(patch)).rejects.toMatchObject({ code: 'state-incompatible' });
    stage.machine.oracle.expectAtRest([newer]);
    expect(program.level).toBe(10);
    // One that is stacked may leave it alone.
    await stage.enable(patchOf('stacked', ['g']));
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
