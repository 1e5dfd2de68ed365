import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import {
  compile,
  type LiveTarget,
  livegraft,
  PATCH_INCLUDES,
  pause,
  snapshot,
  startHurtLivegraft,
  startLivegraft,
} from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** A library that comes and goes: the scenarios of the kernel's livepatch selftests, where it is a module (test-callbacks.sh). */
const program = compile('objects.c', 'program');
const library = compile('objects.c', 'library', ['-DLIBRARY']);
const libraryPatch = buildPatch(library, 'library', ['-DLIBRARY', '-fPIC']);

function buildPatch(
  target: string,
  name: string,
  flags: readonly string[],
  more: readonly string[] = [],
): string {
  const sections = [...flags, '-ffunction-sections', '-fdata-sections'];
  const original = compile('objects.c', 'object', sections);
  const patched = compile('objects.c', 'object', [...sections, '-DPATCHED', ...more]);
  const patch = `${patched}.${process.pid}.lgp`;
  const files = ['--orig', original, '--patched', patched, '--target', target];
  const built = livegraft('build', ...files, '-o', patch, '--name', name);
  if (built.code !== 0) throw new Error(built.stderr);
  return patch;
}

/** Of a program and its library, which change together. */
const programPatch = buildPatch(program, 'program', []);
const bothPatch = combine(programPatch, libraryPatch);

/** The same, the library's part with callbacks. */
const withCallbacks = (...more: string[]) =>
  combine(
    programPatch,
    buildPatch(library, 'library', ['-DLIBRARY', '-fPIC'], [PATCH_INCLUDES, '-DCALLBACKS', ...more]),
  );

function combine(...patches: readonly string[]): string {
  const combined = `${patches.at(-1)}.combined.lgp`;
  const run = livegraft('combine', ...patches, '-o', combined, '--name', 'both');
  if (run.code !== 0) throw new Error(run.stderr);
  return combined;
}

const start = (...options: string[]) => startForTest(program, '60', library, ...options);
const open = (target: LiveTarget) => ask(target, 'SIGUSR1', (line) => line.library > 0);
const close = (target: LiveTarget) => ask(target, 'SIGUSR2', (line) => line.library === 0);
const apply = (target: LiveTarget, ...options: string[]) =>
  livegraft('--json', 'apply', '--pid', String(target.pid), ...options);
const revert = (target: LiveTarget, ...options: string[]) =>
  livegraft('--json', 'revert', '--pid', String(target.pid), ...options);

interface Line {
  readonly own: number;
  readonly library: number;
  readonly mixes: number;
  readonly text: string;
}

/** The newest line that the target has printed whole. */
function lineOf(target: LiveTarget): Line | undefined {
  const lines = target.output().split('\n').slice(0, -1);
  const match = /^(\d+) (\d+) (\d+) (.*)$/.exec(lines.at(-1) ?? '');
  if (match === null) return undefined;
  return { own: Number(match[1]), library: Number(match[2]), mixes: Number(match[3]), text: match[4] ?? '' };
}

async function until(target: LiveTarget, isWanted: (line: Line) => boolean): Promise<Line> {
  for (let i = 0; i < 500; i++) {
    const line = lineOf(target);
    if (line !== undefined && isWanted(line)) return line;
    await pause(10);
  }
  throw new Error(target.output().slice(-500));
}

async function ask(target: LiveTarget, signal: NodeJS.Signals, isWanted: (line: Line) => boolean) {
  process.kill(target.pid, signal);
  return await until(target, isWanted);
}

/** The version that the library shows in both of its functions. */
async function expectLibrary(target: LiveTarget, version: number): Promise<void> {
  const line = await until(target, (found) => found.library === version);
  expect(line.text).toBe(version === 0 ? '' : `library ${version}`);
}

function objectsOf(target: LiveTarget) {
  const [line] = livegraft('--json', 'status', '--pid', String(target.pid)).lines;
  const parsed = jsonLineSchema.parse(line);
  if (parsed.event !== 'status') throw new Error(JSON.stringify(line));
  return Object.fromEntries(
    parsed.processes[0]?.patches.flatMap((patch) => patch.objects.map(({ name, state }) => [name, state])) ??
      [],
  );
}

const ownMappings = (target: LiveTarget) =>
  readFileSync(`/proc/${target.pid}/maps`, 'utf8')
    .split('\n')
    .filter((line) => line.includes('memfd:livegraft'));

describe('a patch of a library', () => {
  it('target module before livepatch: is applied and reverted as any other', async () => {
    const target = await start('open');
    await expectLibrary(target, 1);
    const before = snapshot(target.pid);
    expect(apply(target, libraryPatch).code).toBe(0);
    await expectLibrary(target, 2);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'patched' });
    expect(revert(target).code).toBe(0);
    await expectLibrary(target, 1);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('target module never present: is refused, or waits with --late and is reverted', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(apply(target, libraryPatch).lines.at(-1)).toMatchObject({ code: 'object-not-loaded' });
    const late = apply(target, '--late', libraryPatch);
    expect(late.code).toBe(0);
    expect(late.stdout).toContain('2 functions of it stay pending');
    expect(objectsOf(target)).toEqual({ 'objects.so': 'pending' });
    expect(apply(target, libraryPatch).lines.at(-1)).toMatchObject({ code: 'already-applied' });
    expect(revert(target).code).toBe(0);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('module_coming notifier: what came unwatched is said, and applying again completes the patch', async () => {
    const target = await start();
    expect(apply(target, '--late', libraryPatch).code).toBe(0);
    await open(target);
    await expectLibrary(target, 1);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'unpatched' });
    const again = apply(target, libraryPatch);
    expect(again.lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'patch' } });
    await expectLibrary(target, 2);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'patched' });
    expect(revert(target).code).toBe(0);
    await expectLibrary(target, 1);
    expect(ownMappings(target)).toEqual([]);
  });

  it('module_going notifier: one that leaves takes its redirects along, and comes again as a new one', async () => {
    const target = await start('open');
    expect(apply(target, libraryPatch).code).toBe(0);
    await expectLibrary(target, 2);
    await close(target);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'pending' });
    // Loaded anew, probably at the same place: its own bytes tell.
    await open(target);
    await expectLibrary(target, 1);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'unpatched' });
    expect(apply(target, libraryPatch).code).toBe(0);
    await expectLibrary(target, 2);
    await close(target);
    expect(revert(target).code).toBe(0);
    await open(target);
    await expectLibrary(target, 1);
    expect(ownMappings(target)).toEqual([]);
  });

  it('is refused when there are two copies of it, and one that comes later is told of', async () => {
    const target = await start('open');
    const copy = async (count: number) => {
      process.kill(target.pid, 'SIGURG');
      for (let i = 0; i < 500 && constructors(target).length < count; i++) await pause(10);
      expect(constructors(target)).toHaveLength(count);
    };
    expect(apply(target, libraryPatch).code).toBe(0);
    const watch = await startWatch(target);
    await copy(2);
    watch.signal('SIGTERM');
    const { lines } = await watch.done;
    expect(lines.filter(({ event }) => event === 'object')).toEqual([
      expect.objectContaining({
        change: 'refused',
        object: 'objects.so',
        detail: expect.stringContaining('more than once'),
      }),
    ]);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'partly' });
    await expectLibrary(target, 2);
    expect(revert(target).code).toBe(0);
    await expectLibrary(target, 1);
    const before = snapshot(target.pid);
    expect(apply(target, libraryPatch).lines.at(-1)).toMatchObject({ code: 'loaded-twice' });
    expect(snapshot(target.pid)).toEqual(before);
  });
});

/** Versions that the library's constructors have seen. */
const constructors = (target: LiveTarget) =>
  [...target.output().matchAll(/^constructor (\d)$/gm)].map((match) => Number(match[1]));

async function startUntil(said: string, ...args: string[]) {
  const run = startLivegraft('--json', ...args);
  for (let i = 0; i < 500 && !run.output().includes(said); i++) await pause(10);
  expect(run.output()).toContain(said);
  return run;
}

const startWatch = (target: LiveTarget) =>
  startUntil('end with Ctrl-C', 'watch', '--pid', String(target.pid));

describe('a patch of a program and its library', () => {
  it('multiple target modules: one that comes is patched before its constructors run, whenever it comes', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const first = await startUntil('taskWaiting', 'apply', '--pid', String(target.pid), bothPatch);
    process.kill(target.pid, 'SIGHUP');
    expect((await first.done).code).toBe(0);
    expect(objectsOf(target)).toEqual({ objects: 'patched', 'objects.so': 'pending' });
    const watch = await startWatch(target);
    for (const round of [1, 2]) {
      await open(target);
      await expectLibrary(target, 2);
      expect(constructors(target)).toHaveLength(round);
      await close(target);
    }
    await open(target);
    expect(constructors(target)).toEqual([2, 2, 2]);
    expect(objectsOf(target)).toEqual({ objects: 'patched', 'objects.so': 'patched' });
    watch.signal('SIGTERM');
    const { code, lines } = await watch.done;
    expect(code).toBe(0);
    expect(lines.filter(({ event }) => event === 'object').map(({ change }) => change)).toEqual([
      'patched',
      'left',
      'patched',
      'left',
      'patched',
    ]);
    for (const line of lines) jsonLineSchema.parse(line);
    const back = await startUntil('taskWaiting', 'revert', '--pid', String(target.pid));
    process.kill(target.pid, 'SIGHUP');
    expect((await back.done).code).toBe(0);
    await expectLibrary(target, 1);
    expect(lineOf(target)?.mixes).toBe(0);
    await close(target);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('busy target module: one that comes and goes in mid-transition is of the version of each thread', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    const run = await startUntil('taskWaiting', 'apply', '--pid', String(target.pid), bothPatch);
    await until(target, ({ own }) => own === 2);
    await open(target);
    await expectLibrary(target, 2);
    await close(target);
    await open(target);
    await expectLibrary(target, 2);
    expect(constructors(target)).toEqual([2, 2]);
    run.signal('SIGQUIT');
    const { code, lines } = await run.done;
    expect(code).toBe(1);
    expect(lines.at(-1)).toMatchObject({ result: { kind: 'complete', direction: 'unpatch' } });
    await expectLibrary(target, 1);
    expect(lineOf(target)?.mixes).toBe(0);
    expect(ownMappings(target)).toEqual([]);
    await close(target);
    expect(snapshot(target.pid)).toEqual(before);
  });
});

describe('a program with musl, a C library without unwind tables', () => {
  // What musl-gcc gives to gcc.
  const musl = '-specs=/usr/lib/x86_64-linux-musl/musl-gcc.specs';
  const muslLibrary = compile('objects.c', 'library', ['-DLIBRARY', musl]);
  const muslProgram = compile('objects.c', 'program', [musl]);
  const patch = combine(
    buildPatch(muslProgram, 'program', [musl]),
    buildPatch(muslLibrary, 'library', ['-DLIBRARY', '-fPIC', musl]),
  );

  it('is not switched while it sleeps in there, but switches itself at a barrier; a library that comes is patched', async () => {
    const target = await startForTest(muslProgram, '60', muslLibrary);
    const pid = String(target.pid);
    const unproven = apply(target, '--timeout', '0.3', patch);
    expect(unproven.code).toBe(3);
    expect(unproven.stdout).toContain('the tables of libc.so say nothing about it');
    const without = revert(target);
    expect(without.code).toBe(0);
    expect(without.stdout).toContain('stay mapped: a thread may be inside of them');

    const first = await startUntil('taskWaiting', 'apply', '--pid', pid, '--barrier', 'turn', patch);
    process.kill(target.pid, 'SIGHUP');
    expect((await first.done).code).toBe(0);
    const watch = await startWatch(target);
    await open(target);
    await expectLibrary(target, 2);
    expect(constructors(target)).toEqual([2]);
    watch.signal('SIGTERM');
    expect((await watch.done).code).toBe(0);

    const back = await startUntil('taskWaiting', 'revert', '--pid', pid);
    process.kill(target.pid, 'SIGHUP');
    expect((await back.done).code).toBe(0);
    await expectLibrary(target, 1);
    expect(lineOf(target)).toMatchObject({ own: 1, mixes: 0 });
  });
});

/** A watch takes some 85 steps until it is ready, and 105 more for a library that leaves. */
const FIRST_LEAVING_STEP = 90;

describe('callbacks of a library', () => {
  const callbacks = (target: LiveTarget) =>
    [...target.output().matchAll(/^callback (.*)$/gm)].map((match) => match[1]);
  /** The parked thread is let out. */
  async function complete(target: LiveTarget, ...args: string[]) {
    const run = await startUntil(
      'taskWaiting',
      args[0] as string,
      '--pid',
      String(target.pid),
      ...args.slice(1),
    );
    process.kill(target.pid, 'SIGHUP');
    expect((await run.done).code).toBe(0);
  }

  it('target module before livepatch: each has its turn', async () => {
    const target = await start('open');
    const before = snapshot(target.pid);
    await complete(target, 'apply', withCallbacks());
    expect(callbacks(target)).toEqual(['pre_patch', 'post_patch']);
    await complete(target, 'revert');
    expect(callbacks(target).slice(2)).toEqual(['pre_unpatch', 'post_unpatch']);
    expect(snapshot(target.pid)).toEqual(before);
  });

  it('module_coming notifier: those of a target that comes later run when it comes', async () => {
    const target = await start();
    await complete(target, 'apply', withCallbacks());
    expect(callbacks(target)).toEqual([]);
    const watch = await startWatch(target);
    await open(target);
    await expectLibrary(target, 2);
    for (let i = 0; i < 300 && callbacks(target).length < 2; i++) await pause(10);
    expect(callbacks(target)).toEqual(['pre_patch', 'post_patch']);
    watch.signal('SIGTERM');
    expect((await watch.done).code).toBe(0);
    await complete(target, 'revert');
    expect(callbacks(target).slice(2)).toEqual(['pre_unpatch', 'post_unpatch']);
    await expectLibrary(target, 1);
  });

  it('module_going notifier: those of a target that leaves first run as it goes, and not again', async () => {
    const target = await start('open');
    await complete(target, 'apply', withCallbacks());
    expect(callbacks(target)).toEqual(['pre_patch', 'post_patch']);
    const watch = await startWatch(target);
    await close(target);
    // They use the library's data: it is there still, and nothing of it will run.
    expect(callbacks(target).slice(2)).toEqual(['late pre_unpatch', 'late post_unpatch']);
    watch.signal('SIGTERM');
    const { code, lines } = await watch.done;
    expect(code).toBe(0);
    expect(lines.filter(({ event }) => event === 'callback').map(({ callback }) => callback)).toEqual([
      'preUnpatch',
      'postUnpatch',
    ]);
    expect(objectsOf(target)).toEqual({ objects: 'patched', 'objects.so': 'pending' });
    await complete(target, 'revert');
    expect(callbacks(target)).toHaveLength(4);
  });

  it('busy target module: one that leaves meanwhile has its post-unpatch callback run, and no other', async () => {
    const target = await start('open');
    const run = await startUntil('taskWaiting', 'apply', '--pid', String(target.pid), withCallbacks());
    await until(target, ({ library }) => library === 2);
    await close(target);
    expect(callbacks(target)).toEqual(['pre_patch', 'late post_unpatch']);
    await open(target);
    process.kill(target.pid, 'SIGHUP');
    const { code, lines } = await run.done;
    expect(code).toBe(0);
    expect(lines.filter(({ event }) => event === 'callback').map(({ callback }) => callback)).toEqual([
      'prePatch',
      'postUnpatch',
    ]);
    // It has come back as one that callbacks have to wait for.
    expect(objectsOf(target)).toEqual({ objects: 'patched', 'objects.so': 'unpatched' });
    expect(callbacks(target)).toHaveLength(2);
  });

  // LIVEGRAFT_KILL_EVERY=1 tries every step.
  it('module_going notifier: killed at any step of that, the target goes on, and no callback runs out of its order', async () => {
    const every = Number(process.env.LIVEGRAFT_KILL_EVERY ?? 30);
    const patch = withCallbacks();
    const target = await startForTest(program, '290', library);
    await complete(target, 'apply', patch);
    let killed = 0;
    for (let step = FIRST_LEAVING_STEP; ; step += every) {
      await open(target);
      const again = apply(target, patch);
      expect([0, 1], again.stdout).toContain(again.code);
      await expectLibrary(target, 2);
      const known = callbacks(target).length;
      const watch = startHurtLivegraft(step, '--json', 'watch', '--pid', String(target.pid));
      let end: 'killed' | number | undefined;
      watch.done.then((code) => {
        end = code;
      });
      for (let i = 0; i < 500 && end === undefined && !watch.output().includes('end with Ctrl-C'); i++)
        await pause(10);
      const isReady = end === undefined;
      await close(target);
      const ran = callbacks(target).slice(known);
      expect(
        ['', 'late pre_unpatch', 'late pre_unpatch,late post_unpatch'],
        `killed at step ${step}`,
      ).toContain(ran.join());
      await pause(50);
      if (end === undefined) {
        watch.signal('SIGKILL');
        await watch.done;
        expect(ran).toHaveLength(2);
        break;
      }
      if (isReady) killed += 1;
    }
    expect(killed).toBeGreaterThan(60 / every);
    await complete(target, 'revert');
  }, 300_000);

  it('module_coming and module_going notifiers: a target that arrives and leaves has each, each time', async () => {
    const target = await start();
    await complete(target, 'apply', withCallbacks());
    const watch = await startWatch(target);
    for (const round of [1, 2]) {
      await open(target);
      await expectLibrary(target, 2);
      for (let i = 0; i < 300 && callbacks(target).length < 4 * round - 2; i++) await pause(10);
      await close(target);
      expect(callbacks(target).slice(4 * round - 4)).toEqual([
        ...['pre_patch', 'post_patch'],
        ...['late pre_unpatch', 'late post_unpatch'],
      ]);
    }
    watch.signal('SIGTERM');
    expect((await watch.done).code).toBe(0);
    await complete(target, 'revert');
    expect(callbacks(target)).toHaveLength(8);
    expect(ownMappings(target)).toEqual([]);
  });

  it('module_coming notifier, pre-patch callback -ENODEV: the target is refused, the patch stays', async () => {
    const target = await start();
    await complete(target, 'apply', withCallbacks('-DVETO=-19'));
    const watch = await startWatch(target);
    await open(target);
    for (let i = 0; i < 300 && callbacks(target).length < 1; i++) await pause(10);
    await pause(200);
    expect(callbacks(target)).toEqual(['pre_patch']);
    expect(objectsOf(target)).toEqual({ objects: 'patched', 'objects.so': 'unpatched' });
    expect(lineOf(target)).toMatchObject({ own: 2, library: 1 });
    watch.signal('SIGTERM');
    expect((await watch.done).code).toBe(0);
    await complete(target, 'revert');
    expect(callbacks(target)).toEqual(['pre_patch']);
    await expectLibrary(target, 1);
  });

  it('target module never present: none runs', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    await complete(target, 'apply', withCallbacks());
    await complete(target, 'revert');
    expect(callbacks(target)).toEqual([]);
    expect(snapshot(target.pid)).toEqual(before);
  });
});

describe('a watch that is killed', () => {
  it('leaves the process running, and nothing waits for it', async () => {
    const target = await start();
    const before = snapshot(target.pid);
    expect(apply(target, '--late', libraryPatch).code).toBe(0);
    const watch = await startWatch(target);
    watch.signal('SIGKILL');
    await watch.done;
    // A thread that waits at the doorbell does so a millisecond at a time, three seconds long.
    const waits = () =>
      Number(
        /^voluntary_ctxt_switches:\s+(\d+)$/m.exec(readFileSync(`/proc/${target.pid}/status`, 'utf8'))?.[1],
      );
    const known = waits();
    await open(target);
    expect(waits() - known).toBeLessThan(1000);
    expect(constructors(target)).toEqual([1]);
    expect(objectsOf(target)).toEqual({ 'objects.so': 'unpatched' });
    // The next watch completes the patch, and goes on.
    const next = await startWatch(target);
    await expectLibrary(target, 2);
    await close(target);
    await open(target);
    expect(constructors(target)).toEqual([1, 2]);
    next.signal('SIGKILL');
    await next.done;
    expect(revert(target).code).toBe(0);
    await expectLibrary(target, 1);
    await close(target);
    expect(snapshot(target.pid)).toEqual(before);
  });

  // Each step takes about a second on a busy machine: LIVEGRAFT_KILL_EVERY=1 tries them all.
  it('is killed at any step of its work, and the library has one version', async () => {
    const every = Number(process.env.LIVEGRAFT_KILL_EVERY ?? 47);
    const target = await startForTest(program, '290', library);
    const before = snapshot(target.pid);
    expect(apply(target, '--late', libraryPatch).code).toBe(0);
    let killed = 0;
    for (let step = 1; ; step += every) {
      const watch = startHurtLivegraft(step, '--json', 'watch', '--pid', String(target.pid));
      let end: 'killed' | number | undefined;
      watch.done.then((code) => {
        end = code;
      });
      for (let i = 0; i < 500 && end === undefined && !watch.output().includes('end with Ctrl-C'); i++)
        await pause(10);
      const line = await open(target);
      expect([1, 2], `killed at step ${step}`).toContain(line.library);
      expect(line.text, `killed at step ${step}`).toBe(`library ${line.library}`);
      await pause(50);
      if (end === undefined) {
        // It has come through.
        watch.signal('SIGKILL');
        await watch.done;
        break;
      }
      killed += 1;
      const next = apply(target, libraryPatch);
      if (next.code !== 0) expect(next.lines.at(-1)).toMatchObject({ code: 'already-applied' });
      await expectLibrary(target, 2);
      await close(target);
    }
    expect(killed).toBeGreaterThan(100 / every);
    expect(revert(target).code).toBe(0);
    await expectLibrary(target, 1);
    await close(target);
    expect(snapshot(target.pid)).toEqual(before);
  }, 300_000);
});
