import { type CallbackObject, type CallbackStage, stageAfter } from '../../engine/callbacks.js';
import { callbackObjectsOf } from './patch-callbacks.js';
import { partsOf } from './patch-objects.js';
import { readMappings } from './proc.js';
import type { ProcessSpace } from './process-space.js';
import type { RegisteredPatch } from './registry.js';
import type { TaskRoster } from './task-roster.js';
import type { Tracer } from './tracer.js';

/** The callbacks of a patch in one process of a transition. A process that ends meanwhile is left out. */
export function callbacksInTransition(
  space: ProcessSpace,
  patch: RegisteredPatch,
  tracer: Tracer,
  roster: TaskRoster,
): readonly CallbackObject[] {
  if (partsOf(patch).every(({ callbacks }) => callbacks === undefined)) return [];
  const { pid, memory, inspector } = space;
  const target = { tracer, memory, inspector, mappings: readMappings(pid) ?? [] };
  return callbackObjectsOf(target, patch).map((object): CallbackObject => {
    const stage = () => roster.unlessGone(space, () => object.stage) ?? 'none';
    const whenSettled = <T>(next: CallbackStage, then: () => T) =>
      roster.unlessGone(space, () => {
        setUnseen(space, next);
        return then();
      });
    return {
      name: object.name,
      get stage() {
        return stage();
      },
      has: (kind) => object.has(kind),
      run: (kind) => whenSettled(stageAfter(kind), () => object.run(kind)),
      setStage: (next) => whenSettled(next, () => object.setStage(next)),
    };
  });
}

/**
 * Post callbacks may count on it that all threads have switched. They have; so, in a table of states, must threads that will be created
 * when this run was killed behind the callback, since the next run's callbacks count on it, too.
 */
function setUnseen({ slots }: ProcessSpace, next: CallbackStage): void {
  if (next === 'postPatched') slots.setAll(1);
  else if (next === 'none') slots.setAll(0);
}
