import { LivegraftError } from '../base/errors.js';
import { isRunning } from '../targets/process/proc.js';
import type { ProcessSession } from '../targets/process/process-session.js';
import type { RetiredImage } from '../targets/process/registry.js';
import type { StackInspector } from '../targets/process/stack-inspector.js';
import { isStillReferenced } from '../targets/process/suspended-contexts.js';
import { sleepSync, type Tracee } from '../targets/process/tracer.js';

/** The patch is gone already: that its memory can't be given back now is no failure. The next clean-up finds it. */
export function tryCleanUp(session: ProcessSession): readonly string[] {
  try {
    return cleanUp(session);
  } catch (error) {
    if (!(error instanceof LivegraftError) || !isRunning(session.pid)) throw error;
    return [`the memory of the removed patch stays mapped for now: ${error.message}`];
  }
}

function cleanUp(session: ProcessSession): readonly string[] {
  session.refreshMappings();
  session.seize();
  settleRetired(session);
  const stackPointers = session.stackPointers();
  return session.cleanUp((image) =>
    isStillReferenced(session.memory, session.mappings, stackPointers, image, () => session.tracer.attend()),
  );
}

/** Waits for threads that were inside of a removed patch when its entries were restored: none can enter any more. */
function settleRetired(session: ProcessSession): void {
  const { registry } = session;
  if (registry === undefined || !registry.retired.some((image) => image.inUse)) return;
  const inspector = session.inspector(registry.retired);
  let isClear = true;
  for (const tracee of [...session.tracer.tracees.values()])
    isClear = hasLeft(session, inspector, tracee, registry.retired) && isClear;
  if (isClear)
    session.registry = {
      ...registry,
      retired: registry.retired.map((image) => ({ ...image, inUse: false })),
    };
}

/** System-call stops that a thread is watched for: it may create threads all the time, where its stack can't be walked. */
const WATCHED_STOPS = 6;

function hasLeft(
  { tracer }: ProcessSession,
  inspector: StackInspector,
  tracee: Tracee,
  retired: readonly RetiredImage[],
): boolean {
  for (let attempt = 0; attempt < 50; attempt++) {
    if (tracee.state === 'running') {
      tracer.interrupt(tracee);
      tracer.collect(tracee, 100);
    }
    let left = tracee.state === 'gone';
    if (tracee.state === 'stopped' && tracer.fetchRegisters(tracee)) {
      // None can enter any more: what a copy shows stays true, and it is walked while the thread runs on.
      const copy = attempt === 0 ? inspector.copyStack(tracee) : undefined;
      if (copy === undefined) left = inspector.check(tracee, retired) === undefined;
      tracee.syscallStopsWanted = left || copy !== undefined ? 0 : WATCHED_STOPS;
      tracer.resume(tracee);
      if (copy !== undefined) left = inspector.isClear(copy, retired);
    }
    if (left) return true;
    for (let i = 0; i < 5 && tracee.state === 'running'; i++) {
      sleepSync(0.2);
      tracer.attend();
    }
  }
  tracee.syscallStopsWanted = 0;
  tracer.resume(tracee);
  return false;
}
