import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError } from '../base/errors.js';
import type { Patch } from '../patch/content.js';
import { parsePatch } from '../patch/file.js';
import { KernelPatcher } from '../targets/kernel/kernel-patcher.js';
import type { RegisteredKernelPatch } from '../targets/kernel/kernel-registry.js';
import type { KernelSession } from '../targets/kernel/kernel-session.js';
import { enabledPatches } from '../targets/kernel/kernel-versions.js';
import { ModuleAttendant } from '../targets/kernel/module-attendant.js';
import { ModuleLoader } from '../targets/kernel/module-loader.js';
import { sha256 } from '../targets/process/patch-loader.js';
import { type KernelReference, withSession } from './kernel-connection.js';
import { applyToKernel } from './kernel-operations.js';
import { readPatchFile, stepsOf, tellLeftModules } from './operation-support.js';
import type { WatchOptions } from './operations.js';

export type KernelWatchOptions = KernelReference & Omit<WatchOptions, 'pid'>;

/** How often to look whether the watch is to end, and whether the guest still is the one that it was. */
const LOOK_MS = 200;
const LOOKS_PER_CHECK = 25;
/** How long a transition of a module may take that was loaded while nobody watched. */
const COMPLETE_MS = 30_000;

/**
 * Patches modules as a kernel loads them, until it is told to stop. A stub serves one debugger at a time: other commands have to wait
 * for the end of the watch, and what is loaded until the next one runs as it is until then.
 */
export async function watchKernel(options: KernelWatchOptions): Promise<void> {
  const { signal, onEvent } = options;
  /** Patches whose modules could not be patched by a transition: they are not tried over and over. */
  const given = new Set<string>();
  while (!signal.aborted) {
    const unpatched = await withSession(options, [], (session) => watchOnce(session, options, given));
    for (const patch of unpatched) {
      given.add(patch.id);
      try {
        const how = { model: 'hybrid' as const, timeoutMs: COMPLETE_MS };
        await applyToKernel({ ...options, ...how, patchPath: patch.path ?? '' });
      } catch (error) {
        if (!(error instanceof LivegraftError) || error.code === 'target-gone') throw error;
        stepsOf(onEvent).notice(error.message);
      }
    }
  }
}

/** Returns the patches that have a module which needs a transition, since it runs already. */
async function watchOnce(
  session: KernelSession,
  { signal, onEvent }: KernelWatchOptions,
  given: ReadonlySet<string>,
): Promise<readonly RegisteredKernelPatch[]> {
  const { step, notice } = stepsOf(onEvent);
  const patcher = await KernelPatcher.open(session, x86_64);
  await patcher.watch.expectAlive();
  tellLeftModules(await patcher.late.settle(), onEvent);
  if (enabledPatches(patcher.registry).length === 0) {
    throw new LivegraftError('no-such-patch', 'the kernel carries no patch', {
      remedy: 'apply one first, with --late for a module that is not loaded',
    });
  }
  const contents = readContents(enabledPatches(patcher.registry), notice);
  const loader = new ModuleLoader(session);
  const attendant = new ModuleAttendant(session, patcher, {
    contentOf: ({ id }) => contents.get(id),
    tell: (change, { name }, object, detail) =>
      onEvent({ kind: 'object', change, patch: name, object, detail, atMs: 0 }),
    tellLeft: (left) => tellLeftModules(left, onEvent),
    tellCallback: (object, callback) =>
      onEvent({ kind: 'callback', object, callback, failure: undefined, atMs: 0 }),
  });
  await session.stop();
  await loader.begin();
  try {
    // What came while this session was opened was not told.
    await session.refreshModules();
    const unpatched = await findUnpatched(patcher, given);
    if (unpatched.length > 0) return unpatched;
    session.resume();
    step('watch', `kernel ${session.kernel.image.release}; end with Ctrl-C`);
    for (let looks = 1; !signal.aborted; looks++) {
      await loader.attend(LOOK_MS, (event, task) => attendant.attend(event, task));
      if (looks % LOOKS_PER_CHECK === 0) await patcher.watch.expectAlive();
    }
    step('watch', 'the kernel is not watched any more');
    return [];
  } finally {
    await session.stop();
    await loader.end();
    session.resume();
  }
}

/** What is loaded but not patched: modules came while nobody watched. */
async function findUnpatched(
  patcher: KernelPatcher,
  given: ReadonlySet<string>,
): Promise<readonly RegisteredKernelPatch[]> {
  if (patcher.registry.transition !== undefined) return [];
  const found: RegisteredKernelPatch[] = [];
  for (const patch of enabledPatches(patcher.registry)) {
    if (given.has(patch.id) || patch.path === undefined) continue;
    const states = await patcher.late.states(patch);
    if (states.some(({ state }) => state === 'unpatched')) found.push(patch);
  }
  return found;
}

/** The files that patches were applied from: they are needed when the guest stands still. */
function readContents(
  patches: readonly RegisteredKernelPatch[],
  notice: (text: string) => void,
): ReadonlyMap<string, Patch> {
  const contents = new Map<string, Patch>();
  for (const { id, name, path, objects = [] } of patches) {
    if (path === undefined || objects.length === 0) continue;
    try {
      const content = parsePatch(readPatchFile(path), path, sha256);
      if (content.id === id) contents.set(id, content);
      else notice(`${path} is not the patch ${name} any more: its modules are not patched as they come`);
    } catch (error) {
      if (!(error instanceof LivegraftError)) throw error;
      notice(error.message);
    }
  }
  return contents;
}
