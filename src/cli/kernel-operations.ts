import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { x86_64 } from '../arch/x86-64/index.js';
import { hex } from '../base/brand.js';
import { counted } from '../base/counted.js';
import { LivegraftError } from '../base/errors.js';
import { passMoment } from '../engine/callbacks.js';
import { type Direction, switchesPerTask } from '../engine/target.js';
import { runTransition, TransitionControl } from '../engine/transition.js';
import { extractVmlinux } from '../kernel-image/decompress.js';
import { type KernelImage, parseKernelImage } from '../kernel-image/kernel-image.js';
import type { Patch } from '../patch/content.js';
import { parsePatch } from '../patch/file.js';
import type { StopStatistics } from '../targets/kernel/gdb-client.js';
import { parseGdbEndpoint } from '../targets/kernel/gdb-connection.js';
import { GuestGuard } from '../targets/kernel/guest-guard.js';
import { type EntryState, KernelEntries } from '../targets/kernel/kernel-entries.js';
import { KernelLines } from '../targets/kernel/kernel-lines.js';
import { VMLINUX } from '../targets/kernel/kernel-objects.js';
import { pendingModules } from '../targets/kernel/kernel-patch-modules.js';
import { KernelPatcher } from '../targets/kernel/kernel-patcher.js';
import type {
  KernelRegistry,
  RegisteredKernelFunction,
  RegisteredKernelPatch,
} from '../targets/kernel/kernel-registry.js';
import { KernelSession } from '../targets/kernel/kernel-session.js';
import { soakKernel } from '../targets/kernel/kernel-soak.js';
import { enabledPatches, kernelVersions } from '../targets/kernel/kernel-versions.js';
import { raisePriority } from '../targets/process/own-runtime.js';
import { sha256 } from '../targets/process/patch-loader.js';
import type { SoakOptions, SoakReport } from '../targets/soak.js';
import { blockingFrame, releasedBy, type StragglerReport } from '../targets/straggler-report.js';
import { decompressors } from './decompressors.js';
import { expectOnTop, readPatchFile, stepsOf, tellLeftModules } from './operation-support.js';
import type { ApplyOptions, ApplyOutcome, ForceOptions, RevertOptions } from './operations.js';

/** How a command names a running kernel. */
export interface KernelReference {
  /** `unix:PATH` or `HOST:PORT` */
  readonly gdb: string;
  readonly vmlinux: string;
  /** The file that QEMU shares as the guest's memory. */
  readonly guestMemory?: string | undefined;
  /** How long one answer of the stub may take, where that is not the usual time. */
  readonly answerTimeoutMs?: number | undefined;
}

export interface KernelTaskStack {
  readonly pid: number;
  readonly name: string;
  readonly kthread: boolean;
  readonly state: string;
  readonly reliable: boolean;
  readonly reason: { readonly code: string; readonly detail: string } | undefined;
  readonly frames: readonly {
    readonly index: number;
    readonly address: string;
    readonly symbol: string | undefined;
    readonly module: string;
    readonly by: string;
    /** `kernel/sched/core.c:6705`, where the vmlinux has a line table. */
    readonly source: string | undefined;
  }[];
}

type LookedUpFrame = Omit<KernelTaskStack['frames'][number], 'source'> & { readonly lookup: number };

export interface KernelStacksReport {
  readonly release: string;
  /** What address-space randomisation added to the addresses of the image. */
  readonly offset: string;
  readonly cpus: number;
  readonly modules: readonly string[];
  /** How long the guest stood still. */
  readonly stoppedMs: number;
  readonly tasks: readonly KernelTaskStack[];
}

/** How long one answer of a stub may take: an emulated guest on a crowded machine is slow. */
const ANSWER_TIMEOUT_MS = 10_000;

/** Every task's stack, in one stop of the guest. */
export async function kernelStacks(reference: KernelReference): Promise<KernelStacksReport> {
  return withSession(reference, LEAVING_SIGNALS, async (session, image) => {
    await KernelPatcher.open(session, x86_64);
    await session.stop();
    const startedAt = performance.now();
    const cpus = await session.tasks.cpus();
    const tasks: (Omit<KernelTaskStack, 'frames'> & { readonly frames: readonly LookedUpFrame[] })[] = [];
    for (const task of await session.tasks.tasks(cpus)) {
      const walk = await session.stacks.walk(task, cpus);
      const frames = session.stacks.reportFrames(walk.frames);
      tasks.push({
        pid: task.pid,
        name: task.name,
        kthread: task.isKthread || task.isIdle,
        state: task.state,
        reliable: walk.reliable,
        reason: walk.reliable ? undefined : walk.reason,
        frames: walk.frames.map((frame, index) => ({
          index,
          address: hex(frame.pc),
          symbol: frames[index]?.symbol,
          module: frame.module.name,
          by: frame.by,
          lookup: frame.lookup,
        })),
      });
    }
    const stoppedMs = Math.round(performance.now() - startedAt);
    session.resume();
    const lines = new KernelLines(image.elf);
    return {
      release: image.release,
      offset: hex(session.kernel.offset),
      cpus: cpus.length,
      modules: session.modules.map((module) => module.name),
      stoppedMs,
      tasks: tasks.map((task) => ({
        ...task,
        frames: task.frames.map(({ lookup, ...frame }) => {
          const found = frame.module === VMLINUX ? lines.at(lookup - session.kernel.offset) : undefined;
          return { ...frame, source: found && `${found.file}:${found.line}` };
        }),
      })),
    };
  });
}

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

/** The patches that a kernel carries, and what is at the entries of their functions. */
export interface KernelStatus {
  readonly release: string;
  readonly patches: readonly (Omit<RegisteredKernelPatch, 'functions'> & {
    readonly functions: readonly (RegisteredKernelFunction & { readonly entry: EntryState })[];
    readonly moduleStates: Awaited<ReturnType<KernelPatcher['late']['states']>>;
  })[];
  readonly transition:
    | (NonNullable<KernelRegistry['transition']> & {
        /** Undefined when they were not asked for. */
        readonly stragglerReports: readonly StragglerReport[] | undefined;
      })
    | undefined;
}

/** What the registry in the guest says, and its code. */
export async function kernelStatus(reference: KernelReference, explain: boolean): Promise<KernelStatus> {
  return withSession(reference, LEAVING_SIGNALS, async (session, image) => {
    const patcher = await KernelPatcher.open(session, x86_64);
    const { registry } = patcher;
    const entries = new KernelEntries(session);
    const patches: KernelStatus['patches'][number][] = [];
    for (const patch of registry.patches) {
      if (patch.state === 'reverted') continue;
      const functions: KernelStatus['patches'][number]['functions'][number][] = [];
      const versions = patcher.versionsOf(patch);
      for (const fn of patch.functions) functions.push({ ...fn, entry: await entries.state(versions, fn) });
      patches.push({ ...patch, functions, moduleStates: await patcher.late.states(patch) });
    }
    const stragglerReports = explain ? await explainStragglers(patcher) : undefined;
    return {
      release: image.release,
      patches,
      transition: registry.transition && { ...registry.transition, stragglerReports },
    };
  });
}

async function explainStragglers(patcher: KernelPatcher): Promise<readonly StragglerReport[]> {
  const { transition, patches } = patcher.registry;
  const patch = patches.find((each) => each.id === transition?.patchId);
  if (transition === undefined || patch === undefined) return [];
  const { direction } = transition;
  const explained = await (await patcher.transition(patch, direction, false)).explain();
  return explained.map(({ task, reason }) => {
    const known = transition.stragglers?.find((each) => each.id === task.id && each.name === task.name);
    return {
      tid: Number(task.id) || 0,
      name: task.name,
      since: known?.since ?? transition.startedAt,
      attempts: known?.attempts ?? 0,
      seenAt: 'now',
      reason,
      frames: reason !== undefined && 'frames' in reason ? reason.frames : [],
      blockingFrame: blockingFrame(reason),
      releasedBy: releasedBy(reason, direction, undefined, patch.barrier?.name),
    };
  });
}

/** What a patch would do to a running kernel. */
export interface KernelPreview {
  readonly release: string;
  readonly functions: readonly { readonly name: string; readonly address: string }[];
  /** Why it would be refused. */
  readonly refusal: { readonly code: string; readonly message: string } | undefined;
}

/** Holds a patch against a running kernel as `apply` does before it changes anything. */
export async function previewInKernel(reference: KernelReference, patch: Patch): Promise<KernelPreview> {
  return withSession(reference, LEAVING_SIGNALS, async (session, image) => {
    const patcher = await KernelPatcher.open(session, x86_64);
    const { release } = image;
    try {
      await patcher.check(patch, sha256, false);
      const functions = patcher
        .entriesOf(patch)
        .map(({ name, address }) => ({ name, address: hex(address) }));
      return { release, functions, refusal: undefined };
    } catch (error) {
      if (!(error instanceof LivegraftError) || !REFUSALS.has(error.code)) throw error;
      return { release, functions: [], refusal: { code: error.code, message: error.message } };
    }
  });
}

/** What {@link KernelPatcher.check} refuses by. */
const REFUSALS: ReadonlySet<string> = new Set([
  ...['wrong-target', 'old-code-differs', 'no-fentry', 'symbol-unresolved', 'state-incompatible'],
  ...['module-not-loaded', 'module-reloaded', 'function-needed', 'parts-connected', 'older-pending'],
]);

/** Walks the stack at every context switch for a while. */
export async function soak(reference: KernelReference, options: SoakOptions): Promise<SoakReport> {
  return withSession(reference, [], async (session) => {
    await KernelPatcher.open(session, x86_64);
    await session.stop();
    return soakKernel(session, options);
  });
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
          ({ object, callback, failure }) =>
            options.onEvent({ kind: 'callback', object, callback, failure: failure?.message, atMs: 0 }),
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

export function readKernelImage(path: string): KernelImage {
  let bytes: Uint8Array;
  try {
    bytes = new Uint8Array(readFileSync(path));
  } catch (cause) {
    throw new LivegraftError('file-unreadable', `${path} can't be read: ${(cause as Error).message}`, {
      remedy: 'give the vmlinuz or vmlinux of the running kernel',
      cause,
    });
  }
  return parseKernelImage(extractVmlinux(bytes, path, decompressors), path);
}

const LEAVING_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** These signals end this process, after the guest was let go; those that `use` is told of by its options do not. */
export async function withSession<T>(
  reference: KernelReference,
  signals: readonly NodeJS.Signals[],
  use: (session: KernelSession, image: KernelImage) => Promise<T>,
  onImage: (image: KernelImage) => void = () => {},
): Promise<T> {
  const endpoint = parseGdbEndpoint(reference.gdb);
  if (endpoint === undefined) {
    throw new LivegraftError('gdb-endpoint', `"${reference.gdb}" names no gdb socket`, {
      remedy: 'write unix:PATH or HOST:PORT',
    });
  }
  // It starts while the image is read.
  const guard = GuestGuard.start(reference.gdb);
  let image: KernelImage;
  try {
    image = readKernelImage(reference.vmlinux);
  } catch (error) {
    guard?.dismiss();
    throw error;
  }
  onImage(image);
  let session: KernelSession | undefined;
  let pending: NodeJS.Signals | undefined;
  const leave = (signal: NodeJS.Signals) => {
    // Connecting has stopped the guest already: it is let go once that is through, which takes a moment.
    pending = signal;
    if (session === undefined) return;
    for (const each of signals) process.off(each, leave);
    void session.close().finally(() => process.kill(process.pid, signal));
  };
  for (const signal of signals) process.on(signal, leave);
  // A guest that stands still waits for this process.
  raisePriority();
  try {
    session = await KernelSession.open({
      endpoint,
      image,
      arch: x86_64,
      timeoutMs: reference.answerTimeoutMs ?? ANSWER_TIMEOUT_MS,
      memoryFile: reference.guestMemory,
      guard,
    });
    if (pending !== undefined) {
      leave(pending);
      throw new LivegraftError('interrupted', `interrupted by ${pending}`);
    }
    return await use(session, image);
  } finally {
    for (const signal of signals) process.off(signal, leave);
    await session?.close();
    // What interrupted a failing connection still ends this process.
    if (pending !== undefined) process.kill(process.pid, pending);
  }
}
