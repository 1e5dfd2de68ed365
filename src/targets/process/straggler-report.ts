import type { ReportedFrame, StragglerReason } from '../../engine/target.js';
import { blockingFrame, releasedBy, type StragglerReport } from '../straggler-report.js';
import { readBlockingSyscall, readThreadStat } from './proc.js';
import type { ProcessSession } from './process-session.js';
import type { RegisteredPatch, RegisteredStraggler, Registry } from './registry.js';
import { blockingCallName } from './syscalls.js';
import { createTaskSlots } from './task-slots.js';
import { PATIENT_TIMEOUT_MS, type Tracee } from './tracer.js';
import { decidedFunction, rangesLeaving } from './trampolines.js';

/** Looks at every seized thread. Each is stopped for a moment, and goes on seized. */
export function explainStragglers(
  session: ProcessSession,
  registry: Registry,
  patch: RegisteredPatch,
): readonly StragglerReport[] {
  const { transition } = registry;
  if (transition === undefined) return [];
  const wanted = transition.direction === 'patch' ? 1 : 0;
  const slots = createTaskSlots(session.memory, registry.slots);
  const inspector = session.inspector();
  const barrier = patch.barrier?.name;
  const ranges = rangesLeaving(registry, patch, transition.direction);
  const reports: StragglerReport[] = [];
  const tell = (tracee: Tracee, reason: StragglerReason | undefined, frames: readonly ReportedFrame[]) => {
    const known = knownStraggler(registry, session.pid, tracee.tid);
    reports.push({
      tid: tracee.tid,
      name: session.threadName(tracee.tid),
      since: known?.since ?? transition.startedAt,
      attempts: known?.attempts ?? 0,
      seenAt: 'now',
      reason,
      frames,
      blockingFrame: blockingFrame(reason),
      releasedBy: releasedBy(reason, transition.direction, waitOf(session.pid, tracee.tid), barrier),
    });
  };
  for (const tracee of [...session.tracer.tracees.values()]) {
    session.tracer.interrupt(tracee);
    if (session.tracer.collect(tracee, PATIENT_TIMEOUT_MS) === 'running') {
      const state = readThreadStat(session.pid, tracee.tid)?.state ?? '?';
      tell(tracee, { kind: 'unstoppable', detail: `it is in state ${state} and does not stop` }, []);
      continue;
    }
    if (tracee.state !== 'stopped' || !session.tracer.fetchRegisters(tracee)) continue;
    const isSwitched = slots.stateOf(tracee) === wanted;
    const walk = isSwitched ? undefined : inspector.walk(tracee);
    const why = isSwitched ? undefined : inspector.check(tracee, ranges);
    const decided = decidedFunction(tracee, patch);
    session.tracer.resume(tracee);
    if (walk === undefined) continue;
    const frames = inspector.reportFrames(walk.frames);
    const busy =
      decided === undefined ? why?.() : ({ kind: 'busy', function: decided, frame: 0, frames } as const);
    // In the lazy model nothing else switches it, whatever its stack holds.
    const isLazy = transition.model === 'lazy' && barrier !== undefined;
    tell(tracee, isLazy ? { kind: 'beforeBarrier', barrier } : busy, frames);
  }
  return reports;
}

/** While another livegraft holds the threads: what it has written down of its last looks. */
export function recordedStragglers(registry: Registry, pid: number): readonly StragglerReport[] {
  const { transition } = registry;
  const barrier = registry.patches.find((patch) => patch.id === transition?.patchId)?.barrier?.name;
  return (transition?.stragglers ?? []).flatMap(({ tid }) => {
    const known = knownStraggler(registry, pid, tid);
    if (known === undefined || transition === undefined) return [];
    const { name, since, attempts, lastAt, reason } = known;
    return [
      {
        tid,
        name,
        since,
        attempts,
        seenAt: lastAt,
        reason,
        frames: 'frames' in reason ? reason.frames : [],
        blockingFrame: blockingFrame(reason),
        releasedBy: releasedBy(reason, transition.direction, waitOf(pid, tid), barrier),
      },
    ];
  });
}

/** The record of a thread, unless it is of one that had the same id before. */
function knownStraggler(registry: Registry, pid: number, tid: number): RegisteredStraggler | undefined {
  const beganTicks = readThreadStat(pid, tid)?.beganTicks;
  return registry.transition?.stragglers?.find(
    (known) => known.tid === tid && known.beganTicks === beganTicks,
  );
}

/** What a sleeping thread waits for. */
function waitOf(pid: number, tid: number): string | undefined {
  const blocked = readBlockingSyscall(pid, tid);
  return blocked === undefined || blocked.number < 0 ? undefined : blockingCallName(blocked.number);
}
