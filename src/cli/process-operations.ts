import { resolve } from 'node:path';
import { x86_64 } from '../arch/x86-64/index.js';
import { counted } from '../base/counted.js';
import { LivegraftError } from '../base/errors.js';
import type { Direction } from '../engine/target.js';
import { runTransition, TransitionControl } from '../engine/transition.js';
import type { Patch } from '../patch/content.js';
import { parsePatch } from '../patch/file.js';
import { sha256 } from '../targets/process/patch-loader.js';
import { partsOf, pendingObjects, restrictTo } from '../targets/process/patch-objects.js';
import {
  findObjects,
  hasParts,
  prepare,
  prepareArrived,
  recordApplied,
  unload,
} from '../targets/process/patch-register.js';
import { canSetGsBase, isRunning, readExecutablePath } from '../targets/process/proc.js';
import { ProcessSession } from '../targets/process/process-session.js';
import { ProcessSpace } from '../targets/process/process-space.js';
import { ProcessTransition } from '../targets/process/process-transition.js';
import type { RegisteredPatch, Registry } from '../targets/process/registry.js';
import { expectNoSuspendedContext } from '../targets/process/suspended-contexts.js';
import { isGsInUse } from '../targets/process/task-slots.js';
import { rangesBelow, versionStack } from '../targets/process/trampolines.js';
import { expectOnTop, readPatchFile, stepsOf } from './operation-support.js';
import type {
  ApplyOptions,
  ApplyOutcome,
  ForceOptions,
  ProcessOperations,
  RevertOptions,
} from './operations.js';
import { tryCleanUp } from './process-cleanup.js';
import {
  type DoorbellDuty,
  dropDeadDoorbell,
  settle,
  takeBackCallbacks,
  takeDoorbell,
  tellLeft,
  tellPending,
} from './process-objects.js';
import { expectPatch, findPatchedProcesses, soak, stacks, status } from './process-views.js';
import { watch } from './process-watch.js';

/** Joins the parts that patch a process: file, target, engine. */
export function createProcessOperations(): ProcessOperations {
  return {
    apply: (options) => sayIfGone(options.pid, () => apply(options)),
    revert: (options) => sayIfGone(options.pid, () => revert(options)),
    force: (options) => sayIfGone(options.pid, () => force(options)),
    status: (pid, explain) => sayIfGone(pid, () => status(pid, explain)),
    findPatchedProcesses,
    watch: (options) => sayIfGone(options.pid, () => watch(options, apply)),
    stacks: (pid) => sayIfGone(pid, () => stacks(pid)),
    soak: (pid, options) => sayIfGone(pid, () => soak(pid, options)),
  };
}

/** A process that ends or executes another program can fail any step; what matters then is that, not the step. */
async function sayIfGone<T>(pid: number, work: () => Promise<T>): Promise<T> {
  const program = readExecutablePath(pid);
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof LivegraftError) || program === undefined) throw error;
    if (!isRunning(pid)) {
      throw new LivegraftError('target-gone', `process ${pid} has ended`, {
        remedy: 'nothing was left behind; give the pid of a running process',
        details: { pid },
        cause: error,
      });
    }
    if (readExecutablePath(pid) !== program) {
      throw new LivegraftError('target-replaced', `process ${pid} has executed another program`, {
        remedy: 'nothing of the patch is left in it; build a patch for the new program if it needs one',
        details: { pid },
        cause: error,
      });
    }
    throw error;
  }
}

async function apply(options: ApplyOptions): Promise<ApplyOutcome> {
  const { step, notice } = stepsOf(options.onEvent);
  const patch = parsePatch(readPatchFile(options.patchPath), options.patchPath, sha256);
  step('check', `process ${options.pid}, patch ${patch.manifest.name}`);
  const session = new ProcessSession(options.pid, x86_64);
  try {
    const known = session.registry?.patches.find((p) => p.id === patch.id);
    if (session.registry?.transition !== undefined) {
      if (session.registry.transition.patchId !== patch.id)
        throw transitionInProgress(session, session.registry);
      notice('a transition of this patch was left half-done: it is continued');
      session.seize();
      settle(session, options.onEvent);
      try {
        return await transit(session, expectPatch(session.registry, patch.id), 'patch', options);
      } catch (error) {
        // It was killed before it had met the thread that uses GS, and had changed no entry: it begins anew, with a table.
        if (!isGsInUse(error) || known?.state !== 'applying') throw error;
      }
    }
    if (known !== undefined && known.state !== 'applying')
      return await complete(session, patch, known, options);
    if (known !== undefined) {
      session.seize();
      takeBackCallbacks(session, known, options.onEvent);
      unload(session, known.id, undefined);
      notice('the patch had been loaded but not installed by a run that ended early: it is loaded afresh');
    }
    findObjects(session, patch, options.late === true);
    session.seize();
    step('prepare', `${session.tracer.tracees.size} threads`);
    const hasBarrier = (options.barrier ?? patch.manifest.barrier) !== undefined;
    settle(session, options.onEvent);
    // What earlier patches needed counts: their redirects read the states there.
    const { registry } = session;
    const usesTable = hasBarrier && !canSetGsBase(options.pid);
    const kind =
      registry !== undefined && registry.patches.length > 0
        ? registry.slots.kind
        : usesTable
          ? 'threadPointerTable'
          : 'gsBase';
    const wanted = { ...options, late: options.late === true, path: resolve(options.patchPath) };
    let registered = prepare(session, patch, kind, wanted);
    tellPending(registered, notice);
    if (!hasParts(registered)) {
      recordApplied(session, registered.id);
      return outcomeWithoutTransition(registered, 'patch');
    }
    if (!options.allowSuspendedContexts) refuseSuspendedContexts(session, registered, undefined, notice);
    try {
      return await transit(session, registered, 'patch', options);
    } catch (error) {
      if (!isGsInUse(error)) throw error;
      notice('the process uses its GS register itself: task states are kept in a table instead');
      unload(session, registered.id, undefined);
      registered = prepare(session, patch, 'threadPointerTable', wanted);
      return await transit(session, registered, 'patch', options);
    }
  } finally {
    session.close();
  }
}

/** Brings an applied patch to objects that have been loaded since: a transition of its own. */
async function complete(
  session: ProcessSession,
  patch: Patch,
  known: RegisteredPatch,
  options: ApplyOptions,
): Promise<ApplyOutcome> {
  const { step, notice } = stepsOf(options.onEvent);
  session.seize();
  step('prepare', `${session.tracer.tracees.size} threads`);
  settle(session, options.onEvent);
  const before = expectPatch(session.registry as Registry, known.id);
  const objects = prepareArrived(session, patch, before);
  if (objects.length === 0) {
    const pending = pendingObjects(before).map(({ name }) => name);
    throw new LivegraftError(
      'already-applied',
      `process ${options.pid}: patch ${known.name} is applied already${pending.length === 0 ? '' : `, as far as it can be: ${pending.join(', ')} is not loaded`}`,
      {
        remedy: `nothing to do; see livegraft status --pid ${options.pid}`,
        details: { pid: options.pid, patch: known.id },
      },
    );
  }
  notice(`${objects.join(', ')} came after the patch was applied: the patch is brought to it now`);
  const registered = expectPatch(session.registry as Registry, known.id);
  tellPending(registered, notice);
  if (!options.allowSuspendedContexts) refuseSuspendedContexts(session, registered, objects, notice);
  return await transit(session, registered, 'patch', options, objects);
}

function outcomeWithoutTransition(patch: RegisteredPatch, direction: Direction): ApplyOutcome {
  const result = { kind: 'complete', direction, tasks: 0, durationMs: 0, forced: false } as const;
  return { patch: { id: patch.id, name: patch.name }, result };
}

function refuseSuspendedContexts(
  session: ProcessSession,
  patch: RegisteredPatch,
  objects: readonly string[] | undefined,
  notice: (text: string) => void,
): void {
  try {
    const { isComplete } = expectNoSuspendedContext({
      memory: session.memory,
      mappings: session.mappings,
      stackPointers: session.stackPointers(),
      otherStacks: () => session.otherStacks(),
      ranges: session.registry === undefined ? [] : rangesBelow(session.registry, restrictTo(patch, objects)),
      decoder: session.arch.decoder,
      attend: () => session.tracer.attend(),
    });
    if (!isComplete) notice('only the first GiB of memory was searched for suspended contexts');
  } catch (error) {
    unload(session, patch.id, objects);
    throw error;
  }
}

type TransitOptions = Pick<ApplyOptions, 'model' | 'timeoutMs' | 'signal' | 'control' | 'onEvent'>;

async function transit(
  session: ProcessSession,
  patch: RegisteredPatch,
  direction: Direction,
  options: TransitOptions,
  someObjects?: readonly string[],
): Promise<ApplyOutcome> {
  const { step, notice } = stepsOf(options.onEvent);
  const duty = takeDoorbell(session, options.onEvent);
  const { store, registry } = session;
  if (store === undefined || registry === undefined) throw new Error('no registry');
  const objects = someObjects ?? registry.transition?.objects;
  let space: ProcessSpace | undefined;
  const known = () => space?.registry ?? registry;
  space = new ProcessSpace({
    pid: session.pid,
    memory: session.memory,
    inspector: session.inspector([], known),
    store,
    registry,
    isFork: false,
  });
  const { model, timeoutMs } = options;
  const transition = new ProcessTransition(session.tracer, space, {
    patchId: patch.id,
    direction,
    model,
    timeoutMs,
    notice,
    objects,
    onLeft: (left) => tellLeft([left], options.onEvent),
    onPoll: duty === undefined ? undefined : (of) => duty.attend(of),
  });
  const control = options.control ?? new TransitionControl();
  const stop = () => control.stop();
  options.signal.addEventListener('abort', stop);
  step('install', counted(restrictTo(patch, objects).functions.length, 'function'));
  const wasHalfDone = registry.transition !== undefined;
  try {
    const result = await runTransition(transition, {
      direction,
      model,
      timeoutMs,
      clock: { nowMs: () => performance.now() },
      control,
      onEvent: options.onEvent,
    });
    session.registry = space.registry;
    transition.releaseAll();
    const isBellGone = duty !== undefined && endDuty(session, duty);
    if (
      isBellGone ||
      (result.kind === 'complete' && (result.direction === 'unpatch' || patch.replaces === true))
    ) {
      step('cleanup', 'memory of removed patches');
      for (const text of tryCleanUp(session)) notice(text);
    }
    return { patch: { id: patch.id, name: patch.name }, result };
  } catch (error) {
    session.registry = space.registry;
    const gone =
      error instanceof LivegraftError && (error.code === 'target-gone' || error.code === 'target-replaced');
    // Without the patch, or its parts, in the registry the transition was complete, and something behind it failed.
    const kept = space.registry.patches.find((p) => p.id === patch.id);
    if (gone || kept === undefined || !hasParts(restrictTo(kept, objects))) throw error;
    // Also one that a killed run has left before it changed an entry: with slots that this process can't have, it would never end.
    const canBegin = isGsInUse(error) && registry.transition?.phase === 'installing';
    const began = registry.transition?.direction ?? direction;
    if ((wasHalfDone && !canBegin) || !transition.isUntouched(canBegin ? began : direction)) {
      throw new LivegraftError(
        'transition-interrupted',
        `process ${session.pid}: the transition of patch ${patch.name} is not complete: ${(error as Error).message}`,
        {
          remedy:
            'every thread runs one consistent version: repeat the command to go on, or go the other way (apply, revert)',
          details: {
            pid: session.pid,
            patch: patch.id,
            cause: error instanceof LivegraftError ? error.code : 'internal-error',
          },
          cause: error,
        },
      );
    }
    transition.undoInstall();
    session.registry = space.registry;
    duty?.end();
    if (direction === 'patch') takeBackCallbacks(session, restrictTo(patch, objects), options.onEvent);
    if (isGsInUse(error)) session.registry = { ...session.registry, transition: undefined };
    else if (direction === 'patch') unload(session, patch.id, objects);
    else {
      session.registry = { ...session.registry, transition: undefined };
      store.write(session.registry);
    }
    throw error;
  } finally {
    transition.tellHolds();
    options.signal.removeEventListener('abort', stop);
    for (const child of transition.spaces) if (child.isFork) child.memory.close();
  }
}

/** The threads have been let go by then. */
function endDuty(session: ProcessSession, duty: DoorbellDuty): boolean {
  session.seize();
  const isGone = duty.end();
  session.tracer.detachAll(1000);
  return isGone;
}

async function revert(options: RevertOptions): Promise<ApplyOutcome> {
  const { step, notice } = stepsOf(options.onEvent);
  step('check', `process ${options.pid}`);
  const session = new ProcessSession(options.pid, x86_64);
  try {
    const { registry } = session;
    const patch = findPatch(session, options.patch);
    if (registry === undefined) throw new Error('unreachable');
    if (registry.transition !== undefined && registry.transition.patchId !== patch.id) {
      throw transitionInProgress(session, registry);
    }
    expectOnTop(patch, versionStack(registry.patches).above(patch.id));
    session.seize();
    if (registry.transition === undefined && patch.state === 'applying') {
      // It was loaded and never installed: nothing runs it.
      takeBackCallbacks(session, patch, options.onEvent);
      unload(session, patch.id, undefined);
      notice('the patch had been loaded but not installed: it was removed');
      return outcomeWithoutTransition(patch, 'unpatch');
    }
    settle(session, options.onEvent);
    if (registry.transition?.objects !== undefined) {
      // The patch was being brought to these objects: that goes first, all of the patch then.
      notice(
        `the patch was being brought to ${registry.transition.objects.join(', ')}: that is taken back first`,
      );
      const first = await transit(
        session,
        expectPatch(session.registry as Registry, patch.id),
        'unpatch',
        options,
      );
      if (first.result.kind === 'incomplete' || first.result.direction === 'patch') return first;
      session.seize();
    }
    const there = expectPatch(session.registry as Registry, patch.id);
    if (!hasParts(there)) {
      dropDeadDoorbell(session);
      unload(session, patch.id, undefined);
      for (const text of tryCleanUp(session)) notice(text);
      return outcomeWithoutTransition(patch, 'unpatch');
    }
    if (session.registry?.transition === undefined && !options.allowSuspendedContexts) {
      expectNoSuspendedContext({
        memory: session.memory,
        mappings: session.mappings,
        stackPointers: session.stackPointers(),
        otherStacks: () => session.otherStacks(),
        ranges: partsOf(there).map((part) => part.code),
        decoder: session.arch.decoder,
        attend: () => session.tracer.attend(),
      });
    }
    try {
      return await transit(session, there, 'unpatch', options);
    } catch (error) {
      if (!isGsInUse(error) || there.state !== 'applying') throw error;
      // As in apply: no entry was changed.
      takeBackCallbacks(session, there, options.onEvent);
      unload(session, patch.id, undefined);
      notice('the patch had been loaded but not installed: it was removed');
      return outcomeWithoutTransition(patch, 'unpatch');
    }
  } finally {
    session.close();
  }
}

async function force(options: ForceOptions): Promise<ApplyOutcome> {
  const { step } = stepsOf(options.onEvent);
  const { pid } = options;
  step('check', `process ${pid}`);
  const session = new ProcessSession(pid, x86_64);
  try {
    const { transition } = session.registry ?? {};
    if (session.registry === undefined || transition === undefined) {
      throw new LivegraftError(
        'no-transition',
        `process ${pid}: no transition is under way, there is nothing to force`,
        {
          remedy: `see livegraft status --pid ${pid}`,
          details: { pid },
        },
      );
    }
    const patch = expectPatch(session.registry, transition.patchId);
    if (!options.acceptInconsistency) {
      throw new LivegraftError(
        'force-unconfirmed',
        `process ${pid}: forcing patch ${patch.name} switches threads that are in the middle of a version that leaves: they may run a mix of both, and crash`,
        {
          remedy: `see what holds them (livegraft status --pid ${pid} --explain); if a mix can do no harm, repeat with --accept-inconsistency`,
          details: { pid, patch: patch.id },
        },
      );
    }
    session.seize();
    const control = new TransitionControl();
    control.force();
    return await transit(session, patch, transition.direction, { ...options, model: 'hybrid', control });
  } finally {
    session.close();
  }
}

function findPatch(session: ProcessSession, wanted: string | undefined): RegisteredPatch {
  const patches = session.registry?.patches ?? [];
  const found =
    wanted === undefined
      ? (patches.find((p) => p.id === session.registry?.transition?.patchId) ?? patches[patches.length - 1])
      : patches.toReversed().find((p) => p.id === wanted || p.name === wanted);
  if (found !== undefined) return found;
  const names = patches.map((p) => p.name).join(', ');
  throw new LivegraftError(
    'no-such-patch',
    wanted === undefined
      ? `process ${session.pid} carries no patch`
      : `process ${session.pid} carries no patch ${wanted}${names === '' ? '' : ` (it has: ${names})`}`,
    { remedy: `see livegraft status --pid ${session.pid}`, details: { pid: session.pid } },
  );
}

function transitionInProgress(session: ProcessSession, registry: Registry): LivegraftError {
  const patch = registry.patches.find((p) => p.id === registry.transition?.patchId);
  return new LivegraftError(
    'transition-in-progress',
    `process ${session.pid}: the transition of patch ${patch?.name ?? '?'} is not complete`,
    { remedy: 'apply that patch again to complete it, or revert it', details: { pid: session.pid } },
  );
}
