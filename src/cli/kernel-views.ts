import { x86_64 } from '../arch/x86-64/index.js';
import { hex } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import type { Patch } from '../patch/content.js';
import { KERNEL_EDGE } from '../targets/kernel/kernel-barrier.js';
import { type EntryState, KernelEntries } from '../targets/kernel/kernel-entries.js';
import { KernelLines } from '../targets/kernel/kernel-lines.js';
import { VMLINUX } from '../targets/kernel/kernel-objects.js';
import { KernelPatcher } from '../targets/kernel/kernel-patcher.js';
import type {
  KernelRegistry,
  RegisteredKernelFunction,
  RegisteredKernelPatch,
} from '../targets/kernel/kernel-registry.js';
import { soakKernel } from '../targets/kernel/kernel-soak.js';
import { sha256 } from '../targets/process/patch-loader.js';
import type { SoakOptions, SoakReport } from '../targets/soak.js';
import { blockingFrame, releasedBy, type StragglerReport } from '../targets/straggler-report.js';
import { type KernelReference, LEAVING_SIGNALS, withSession } from './kernel-connection.js';

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
  return explained.map(({ task, reason, hasUserMode }) => {
    const barrier = patch.barrier?.name;
    const isPassed = hasUserMode || barrier !== KERNEL_EDGE;
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
      releasedBy: releasedBy(reason, direction, undefined, isPassed ? barrier : undefined),
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
