import { type EntryWrite, type HeldEntry, planEntryWrites } from './entry-writer.js';
import { HoldLog } from './hold-log.js';
import type { ProcessSession } from './process-session.js';
import { ProcessSpace } from './process-space.js';
import type { MemoryRange, RegisteredFunction } from './registry.js';
import { writeWhileStopped } from './stopped-write.js';
import { TaskRoster } from './task-roster.js';

/** How long to try to stop all threads. */
const ENTRY_TIMEOUT_MS = 3000;

/** Brings entries to `to` outside of a transition, while all threads are stopped and none is inside of what `keepOut` says. */
export function writeEntriesStopped(
  session: ProcessSession,
  functions: readonly Pick<RegisteredFunction, 'name' | 'redirect'>[],
  to: HeldEntry,
  keepOut: (write: EntryWrite) => MemoryRange | undefined = () => undefined,
): void {
  const { pid, memory, tracer, store, registry } = session;
  if (store === undefined || registry === undefined) throw new Error('no registry');
  const inspector = session.inspector();
  const space = new ProcessSpace({ pid, memory, inspector, store, registry, isFork: false });
  const roster = new TaskRoster({
    tracer,
    space,
    isInTransition: () => false,
    onForget: () => {},
    onStranger: () => {},
  });
  writeWhileStopped({
    tracer,
    space,
    plan: () =>
      planEntryWrites(memory, functions, to).map((write) => {
        const range = keepOut(write);
        return range === undefined ? write : { ...write, keepOut: range };
      }),
    stays: () => true,
    expectAlive: () => roster.pump(),
    timeoutMs: ENTRY_TIMEOUT_MS,
    // Some entries of functions that hardly run, or of a library that has just come.
    holds: new HoldLog(),
    notice: () => {},
    whenStopped: () => {},
    letGo: (record) => tracer.resume(record.tracee),
  });
}
