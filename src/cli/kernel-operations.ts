import { resolve } from 'node:path';
import { x86_64 } from '../arch/x86-64/index.js';
import { counted } from '../base/counted.js';
import { LivegraftError } from '../base/errors.js';
import { type CallbackReport, passMoment } from '../engine/callbacks.js';
import { type Direction, switchesPerTask } from '../engine/target.js';
import { runTransition, TransitionControl } from '../engine/transition.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import { parsePatch } from '../patch/file.js';
import { pendingModules } from '../targets/kernel/kernel-patch-modules.js';
import { KernelPatcher } from '../targets/kernel/kernel-patcher.js';
import type { KernelRegistry, RegisteredKernelPatch } from '../targets/kernel/kernel-registry.js';
import type { KernelSession } from '../targets/kernel/kernel-session.js';
import { enabledPatches, kernelVersions } from '../targets/kernel/kernel-versions.js';
import type { StopStatistics } from '../targets/kernel/stop-statistics.js';
import { sha256 } from '../targets/process/patch-loader.js';
import { type KernelReference, withSession } from './kernel-connection.js';
import { expectOnTop, readPatchFile, stepsOf, tellLeftModules } from './operation-support.js';
import type { ApplyOptions, ApplyOutcome, ForceOptions, RevertOptions } from './operations.js';

export type KernelApplyOptions = KernelReference &
  Partial<Pick<ApplyOptions, 'barrier' | 'replace' | 'late'>> &
  Pick<ApplyOptions, 'patchPath' | 'model' | 'timeoutMs' | 'signal' | 'control' | 'onEvent'>;
export type KernelRevertOptions = KernelReference &
  Pick<RevertOptions, 'patch' | 'model' | 'timeoutMs' | 'signal' | 'control' | 'onEvent'>;

export type KernelForceOptions = KernelReference &
  Pick<ForceOptions, 'acceptInconsistency' | 'timeoutMs' | 'signal' | 'onEvent'>;

/** How often a guest stood still, and how long: altogether and by what was done meanwhile. */
export interface GuestStops extends StopStatistics {
  readonly phases: readonly (StopStatistics & { readonly phase: string })[];
}

/** What the guest felt of it, besides. */
export type KernelOutcome = ApplyOutcome & { readonly guest: GuestStops };

function guestStops({ client }: KernelSession): GuestStops {
  const phases = Array.from(client.statisticsByPhase, ([phase, statistics]) => ({ phase, ...statistics }));
  return { ...client.statistics, phases };
}

/** Applies a patch to a running kernel, or continues a half-done apply of the same patch. */
export async function applyToKernel(options: KernelApplyOptions): Promise<KernelOutcome> {
  const { step, notice } = stepsOf(options.onEvent);
  const patch = parsePatch(readPatchFile(options.patchPath), options.patchPath, sha256);
  const onImage = ({ release }: KernelImage) =>
    step('check', `kernel ${release}, patch ${patch.manifest.name}`);
  const use = async (session: KernelSession): Promise<KernelOutcome> => {
    const patcher = await KernelPatcher.open(session, x86_64);
    await patcher.watch.expectAlive();
    session.breathe();
    tellLeftModules(await patcher.late.settle(), options.onEvent);
    const { registry } = patcher;
    const known = registry.patches.find((each) => each.id === patch.id);
    if (registry.transition !== undefined) {
      if (known === undefined || registry.transition.patchId !== patch.id) throw inTransition(registry);
      notice('a transition of this patch was left half-done: it is continued');
      return await transit(session, patcher, known, 'patch', options);
    }
    if (known?.state === 'applied') {
      await patcher.expectEntries(known);
      const arrived = await arrivedModules(patcher, known, notice);
      if (arrived.length > 0) {
        step('prepare', `${arrived.join(', ')}, loaded since`);
        const record = await patcher.late.prepare(known, patch, arrived);
        return await transit(session, patcher, record, 'patch', options, arrived);
      }
      throw new LivegraftError('already-applied', `patch ${known.name} is applied to this kernel already`, {
        remedy: 'nothing to do; see livegraft status --gdb',
        details: { patch: known.id },
      });
    }
    await patcher.check(patch, sha256, options.late === true);
    step('prepare', `${patch.sections.length} sections`);
    const { barrier, replace = false } = options;
    const path = resolve(options.patchPath);
    const loaded = await patcher.watch.explain(() =>
      patcher.load(patch, { barrier, replace, path }, options.timeoutMs),
    );
    for (const { name, functions } of pendingModules(loaded))
      notice(
        `${name} is not loaded: ${functions.length} functions of it stay pending. livegraft watch patches it as it comes; after that, applying the patch again does`,
      );
    if (loaded.functions.length === 0) return await completeAtOnce(session, patcher, loaded, 'patch');
    return await transit(session, patcher, loaded, 'patch', options);
  };
  return withSession(options, [], use, onImage);
}

/** Removes a patch from a running kernel (the newest by default), or turns a half-done apply around. */
export async function revertFromKernel(options: KernelRevertOptions): Promise<KernelOutcome> {
  const { step } = stepsOf(options.onEvent);
  const onImage = ({ release }: KernelImage) => step('check', `kernel ${release}`);
  const use = async (session: KernelSession): Promise<KernelOutcome> => {
    const patcher = await KernelPatcher.open(session, x86_64);
    tellLeftModules(await patcher.late.settle(), options.onEvent);
    const { registry } = patcher;
    const present = registry.patches.filter((each) => each.state !== 'reverted');
    const patch =
      options.patch === undefined
        ? (present.find((each) => each.id === registry.transition?.patchId) ?? present.at(-1))
        : present.findLast((each) => each.id === options.patch || each.name === options.patch);
    if (patch === undefined) {
      throw new LivegraftError('no-such-patch', `the kernel carries no patch ${options.patch ?? ''}`.trim(), {
        remedy: 'see livegraft status --gdb for those that it has',
      });
    }
    if (registry.transition !== undefined && registry.transition.patchId !== patch.id)
      throw inTransition(registry);
    expectOnTop(patch, kernelVersions(enabledPatches(registry)).above(patch.id));
    await takeBackArrivals(patcher, patch, options.onEvent);
    // It was loaded, and no entry was changed; or all that it changed has gone.
    if (registry.transition === undefined && (patch.state === 'applying' || patch.functions.length === 0))
      return await completeAtOnce(session, patcher, patch, 'unpatch');
    const outcome = await transit(session, patcher, patch, 'unpatch', options);
    const isPart = registry.transition?.objects !== undefined;
    const left = patcher.registry.patches.find(({ id }) => id === patch.id);
    if (!isPart || outcome.result.kind !== 'complete' || left?.state !== 'applied') return outcome;
    // Only modules that came later had been turned around.
    if (left.functions.length === 0) return await completeAtOnce(session, patcher, left, 'unpatch');
    return await transit(session, patcher, left, 'unpatch', options);
  };
  return withSession(options, [], use, onImage);
}

/**
 * What pre-patch callbacks of modules did that a watch had begun to bring the patch to, and could not complete, their post-unpatch ones
 * undo. Rejects `callback-running` when one has not returned yet.
 */
async function takeBackArrivals(
  patcher: KernelPatcher,
  patch: RegisteredKernelPatch,
  onEvent: KernelRevertOptions['onEvent'],
): Promise<void> {
  if (patch.arriving === undefined) return;
  await passMoment(await patcher.callbacksOfArrivals(patch), 'disabled', tellCallback(onEvent));
  await patcher.late.forgetArrivals(
    patch,
    patch.arriving.map(({ name }) => name),
  );
}

function tellCallback(onEvent: KernelRevertOptions['onEvent']): (report: CallbackReport) => void {
  return ({ object, callback, failure }) =>
    onEvent({ kind: 'callback', object, callback, failure: failure?.message, atMs: 0 });
}

/** Where no entry leads, no task has to switch. */
async function completeAtOnce(
  session: KernelSession,
  patcher: KernelPatcher,
  { id, name }: RegisteredKernelPatch,
  direction: Direction,
): Promise<KernelOutcome> {
  await patcher.complete(id, direction, false);
  return {
    patch: { id, name },
    result: { kind: 'complete', direction, tasks: 0, durationMs: 0, forced: false },
    guest: guestStops(session),
  };
}

/** The modules of an applied patch that were loaded while nobody watched. */
async function arrivedModules(
  patcher: KernelPatcher,
  patch: RegisteredKernelPatch,
  notice: (text: string) => void,
): Promise<readonly string[]> {
  const states = await patcher.late.states(patch);
  for (const { name, state } of states)
    if (state === 'unfit') notice(`the module ${name} that is loaded is another build than the patch is for`);
  return states.filter(({ state }) => state === 'unpatched').map(({ name }) => name);
}

/** Completes a half-done transition of a running kernel without looking at the tasks that hold it up. */
export async function forceInKernel(options: KernelForceOptions): Promise<KernelOutcome> {
  const { step } = stepsOf(options.onEvent);
  return withSession(options, [], async (session, image) => {
    step('check', `kernel ${image.release}`);
    const patcher = await KernelPatcher.open(session, x86_64);
    await patcher.watch.expectAlive();
    session.breathe();
    const { transition, patches } = patcher.registry;
    const patch = patches.find((each) => each.id === transition?.patchId);
    if (transition === undefined || patch === undefined) {
      throw new LivegraftError(
        'no-transition',
        'no transition is under way in the kernel: there is nothing to force',
        { remedy: 'see livegraft status --gdb' },
      );
    }
    if (!options.acceptInconsistency) {
      throw new LivegraftError(
        'force-unconfirmed',
        `forcing patch ${patch.name} switches tasks that are in the middle of a version that leaves: they may run a mix of both, and crash the kernel`,
        {
          remedy:
            'see what holds them (livegraft status with --explain); if a mix can do no harm, repeat with --accept-inconsistency',
          details: { patch: patch.id },
        },
      );
    }
    await patcher.noteForced(patch.id);
    const control = new TransitionControl();
    control.force();
    const { direction } = transition;
    return await transit(session, patcher, patch, direction, { ...options, model: 'hybrid', control });
  });
}

async function transit(
  session: KernelSession,
  patcher: KernelPatcher,
  patch: RegisteredKernelPatch,
  direction: Direction,
  options: Pick<KernelApplyOptions, 'model' | 'timeoutMs' | 'signal' | 'control' | 'onEvent'>,
  objects?: readonly string[],
): Promise<KernelOutcome> {
  const { step, notice } = stepsOf(options.onEvent);
  const control = options.control ?? new TransitionControl();
  const stop = () => control.stop();
  options.signal.addEventListener('abort', stop);
  step('install', counted(patch.functions.length, 'function'));
  const wasBegun = patcher.registry.transition !== undefined;
  try {
    const result = await patcher.watch.explain(async () => {
      const outcome = await runTransition(
        await patcher.transition(patch, direction, switchesPerTask(options.model), objects),
        {
          direction,
          model: options.model,
          timeoutMs: options.timeoutMs,
          clock: { nowMs: () => performance.now() },
          control,
          onEvent: options.onEvent,
        },
      );
      if (outcome.kind === 'complete') await patcher.complete(patch.id, outcome.direction, outcome.forced);
      else await patcher.noteStragglers(outcome.stragglers);
      return outcome;
    });
    session.resume();
    const guest = guestStops(session);
    const { stops, longestMs, totalMs } = guest;
    notice(
      `the guest stood still ${stops} times, ${longestMs.toFixed(1)} ms at the longest, ${totalMs.toFixed(0)} ms together`,
    );
    return { patch: { id: patch.id, name: patch.name }, result, guest };
  } catch (error) {
    if (!(error instanceof LivegraftError) || error.code === 'target-gone') throw error;
    if (error.code === 'model-needs-barrier' || (error.code === 'callback-veto' && !wasBegun)) {
      // Nothing was written but the record. What other callbacks did before the veto is undone.
      if (!wasBegun && error.code === 'callback-veto')
        await passMoment(
          await patcher.callbackObjects(patch, objects),
          'disabled',
          tellCallback(options.onEvent),
        );
      if (!wasBegun) await patcher.complete(patch.id, direction === 'patch' ? 'unpatch' : 'patch', false);
      throw error;
    }
    throw new LivegraftError(
      'transition-interrupted',
      `kernel ${session.kernel.image.release}: the transition of patch ${patch.name} is not complete: ${error.message}`,
      {
        remedy:
          'every task runs one consistent version: repeat the command to go on, or go the other way (apply, revert)',
        details: { patch: patch.id, cause: error.code },
        cause: error,
      },
    );
  } finally {
    options.signal.removeEventListener('abort', stop);
  }
}

function inTransition(registry: KernelRegistry): LivegraftError {
  const patchId = registry.transition?.patchId ?? '?';
  const name = registry.patches.find((patch) => patch.id === patchId)?.name ?? patchId;
  return new LivegraftError('transition-in-progress', `a transition of patch ${name} is not complete`, {
    remedy: 'apply that patch again to complete it, or revert it',
    details: { patch: patchId },
  });
}
