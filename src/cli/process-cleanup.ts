import { LivegraftError } from '../base/errors.js';
import { isRunning } from '../targets/process/proc.js';
import type { ProcessSession } from '../targets/process/process-session.js';
import { isStillReferenced } from '../targets/process/suspended-contexts.js';
import { sleepSync } from '../targets/process/tracer.js';

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
    isStillReferenced(session.memory, session.mappings, stackPointers, image),
  );
}

/** Waits for threads that were inside of a removed patch when its entries were restored: none can enter any more. */
function settleRetired(session: ProcessSession): void {
  const { registry } = session;
  if (registry === undefined || !registry.retired.some((image) => image.inUse)) return;
  const inspector = session.inspector(registry.retired);
  let isClear = true;
  for (const tracee of [...session.tracer.tracees.values()]) {
    let left = false;
    for (let attempt = 0; attempt < 50 && !left; attempt++) {
      session.tracer.interrupt(tracee);
      const state = session.tracer.collect(tracee, 100);
      if (state === 'stopped' && session.tracer.fetchRegisters(tracee)) {
        // None can enter any more: what a copy shows stays true, and it is walked while the thread runs on.
        const copy = attempt === 0 ? inspector.copyStack(tracee) : undefined;
        if (copy === undefined) left = inspector.check(tracee, registry.retired) === undefined;
        session.tracer.resume(tracee);
        if (copy !== undefined) left = inspector.isClear(copy, registry.retired);
      } else left = state === 'gone';
      if (!left) sleepSync(1);
    }
    isClear &&= left;
  }
  if (isClear)
    session.registry = {
      ...registry,
      retired: registry.retired.map((image) => ({ ...image, inUse: false })),
    };
}
