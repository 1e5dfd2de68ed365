import { readdirSync } from 'node:fs';
import { x86_64 } from '../arch/x86-64/index.js';
import { hex } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import { restrictTo } from '../targets/process/patch-objects.js';
import { objectStates } from '../targets/process/patch-register.js';
import { readExecutablePath, readMappings } from '../targets/process/proc.js';
import { ProcessSession } from '../targets/process/process-session.js';
import { soakProcess } from '../targets/process/process-soak.js';
import type { RegisteredPatch, RegisteredTransition, Registry } from '../targets/process/registry.js';
import { findRegistryMapping } from '../targets/process/registry-store.js';
import { explainStragglers, recordedStragglers } from '../targets/process/straggler-report.js';
import { stateInTarget } from '../targets/process/task-slots.js';
import { PATIENT_TIMEOUT_MS } from '../targets/process/tracer.js';
import type { SoakOptions, SoakReport } from '../targets/soak.js';
import type { StragglerReport } from '../targets/straggler-report.js';
import type { PatchStatus, ProcessStatus, TaskStack, TransitionStatus } from './operations.js';

/** What can be seen of a process without changing anything in it. */

export async function status(pid: number, explain: boolean): Promise<ProcessStatus> {
  const session = new ProcessSession(pid, x86_64, 'look');
  try {
    const { registry } = session;
    const { transition } = registry ?? {};
    const isHeld = transition !== undefined && !trySeize(session);
    return {
      pid,
      executable: readExecutablePath(pid) ?? '?',
      patches: (registry?.patches ?? []).map((patch) => patchStatus(session, patch)),
      transition: transition && transitionStatus(session, registry as Registry, transition, isHeld, explain),
    };
  } finally {
    session.close();
  }
}

function patchStatus(session: ProcessSession, patch: RegisteredPatch): PatchStatus {
  const transition = session.registry?.transition;
  const isReverting = transition?.patchId === patch.id && transition.direction === 'unpatch';
  const objects = objectStates(session, patch);
  const there = objects.flatMap(({ name, state }) => (state === 'patched' ? [name] : []));
  return {
    id: patch.id,
    name: patch.name,
    state: isReverting && transition.objects === undefined ? 'reverting' : patch.state,
    forced: patch.forced,
    appliedAt: patch.appliedAt,
    path: patch.path,
    objects,
    functions: restrictTo(patch, there).functions.map((fn) => ({
      object: fn.object,
      name: fn.name,
      oldAddress: hex(fn.old.address),
      newAddress: hex(fn.new.address),
    })),
  };
}

function transitionStatus(
  session: ProcessSession,
  registry: Registry,
  transition: RegisteredTransition,
  isHeld: boolean,
  explain: boolean,
): TransitionStatus {
  const { patchId, direction, model, startedAt } = transition;
  let stragglers: readonly StragglerReport[] | undefined;
  if (explain)
    stragglers = isHeld
      ? recordedStragglers(registry, session.pid)
      : explainStragglers(session, registry, restrictTo(expectPatch(registry, patchId), transition.objects));
  const tasks = isHeld ? [] : stateInTarget(session.tracer, session.memory, registry.slots);
  return { patchId, direction, model, startedAt, isHeld, tasks, stragglers };
}

/** False when another process holds the threads: a livegraft that works on the transition, or a debugger. */
function trySeize(session: ProcessSession): boolean {
  try {
    session.seize();
    return true;
  } catch (error) {
    if (error instanceof LivegraftError && error.code === 'already-traced') return false;
    throw error;
  }
}

export async function findPatchedProcesses(): Promise<readonly number[]> {
  const pids = readdirSync('/proc').map(Number).filter(Number.isInteger);
  return pids.filter((pid) => {
    try {
      return findRegistryMapping(readMappings(pid) ?? []) !== undefined;
    } catch {
      // Another user's process: it can't be one that this user has patched.
      return false;
    }
  });
}

export async function soak(
  pid: number,
  options: SoakOptions & { readonly seed: number },
): Promise<SoakReport> {
  const session = new ProcessSession(pid, x86_64);
  try {
    session.seize();
    return await soakProcess(session, options);
  } finally {
    session.close();
  }
}

export async function stacks(pid: number): Promise<readonly TaskStack[]> {
  const session = new ProcessSession(pid, x86_64);
  try {
    session.seize();
    const inspector = session.inspector();
    const result: TaskStack[] = [];
    for (const tracee of [...session.tracer.tracees.values()]) {
      const common = { tid: tracee.tid, name: session.threadName(tracee.tid) };
      session.tracer.interrupt(tracee);
      const state = session.tracer.collect(tracee, PATIENT_TIMEOUT_MS);
      if (state !== 'stopped' || !session.tracer.fetchRegisters(tracee)) {
        const reason = { code: 'unstoppable', detail: `it did not stop within ${PATIENT_TIMEOUT_MS} ms` };
        if (tracee.state === 'running') result.push({ ...common, reliable: false, reason, frames: [] });
        continue;
      }
      const walk = inspector.walk(tracee);
      session.tracer.detach(tracee);
      const reported = inspector.reportFrames(walk.frames);
      result.push({
        ...common,
        reliable: walk.reliable,
        reason: walk.reliable ? undefined : walk.reason,
        frames: walk.frames.slice(0, reported.length).map((frame, index) => ({
          index,
          address: hex(frame.pc),
          stackPointer: hex(frame.stackPointer),
          symbol: reported[index]?.symbol,
          module: frame.module.name,
          by: frame.by,
        })),
      });
    }
    return result;
  } finally {
    session.close();
  }
}
export function expectPatch(registry: Registry, id: string): RegisteredPatch {
  const patch = registry.patches.find((p) => p.id === id);
  if (patch === undefined)
    throw new LivegraftError(
      'registry-damaged',
      `the registry has a transition of patch ${id}, but no such patch`,
    );
  return patch;
}
