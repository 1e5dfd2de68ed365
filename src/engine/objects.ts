import type { CallbackMoment } from './callbacks.js';
import type { Direction } from './target.js';

/**
 * The objects of patches (executables, libraries, modules) come and go while a target runs, as modules do in a kernel
 * (klp_module_coming, klp_module_going; kernel/livepatch/core.c). What follows from that for their redirects and callbacks, in whatever
 * target; and what a later run makes of an arrival in which the tool has died.
 */

/** Where the entries of a patch's functions lead: nowhere new, by the state of the task, or to the new version. */
export type EntryState = 'below' | 'choosing' | 'direct';

/** The transition of a target, as far as objects go. */
export interface ObjectTransition {
  readonly patchId: string;
  /** Only these objects of the patch take part; all of them without. */
  readonly objects?: readonly string[];
  readonly direction: Direction;
  /** `installing`: nobody has switched. `running`: the states of tasks count. `finishing`: all have switched. */
  readonly phase: 'installing' | 'running' | 'finishing';
  /** All older patches go with it. */
  readonly replaces?: boolean;
}

export interface ArrivalStep<P> {
  readonly patch: P;
  /**
   * What its entries in the object become before the first task runs it. `below`: it is loaded only, and the install of the transition,
   * which is yet to come, writes them. Callbacks: `enable` has its turn before entries are written, `enabled` behind
   * that when they are `direct`; in the other cases the transition does the rest.
   */
  readonly entries: EntryState;
}

/**
 * Which patches an object gets when it comes, in this order, and how: what every task that will call it has of the rest of
 * them. When one is refused, it and the later ones stay away from the object, since versions lie on one another in
 * the order of their patches. `pending`: the patches for it that it has nothing of, oldest first.
 *
 * While a patch replaces the older ones, those come to nothing any more: a run that died between the two would leave entries that
 * lead to what goes. Tasks that have not switched see the object as it is.
 */
export function planArrival<P extends { readonly id: string }>(
  pending: readonly P[],
  object: string,
  transition: ObjectTransition | undefined,
): readonly ArrivalStep<P>[] {
  const isGoing = transition?.phase === 'finishing' && transition.direction === 'unpatch';
  return pending
    .filter(({ id }) => transition?.replaces !== true || id === transition.patchId)
    .filter(({ id }) => !(isGoing && takesPart(transition, id, object)))
    .map((patch) => ({ patch, entries: entriesOfArrived(patch.id, object, transition) }));
}

function entriesOfArrived(
  patch: string,
  object: string,
  transition: ObjectTransition | undefined,
): EntryState {
  // Of a patch that is brought to another of its objects, the rest is enabled.
  if (transition === undefined || !takesPart(transition, patch, object)) return 'direct';
  if (transition.phase === 'running') return 'choosing';
  const haveNew = (transition.phase === 'finishing') === (transition.direction === 'patch');
  return haveNew ? 'direct' : 'below';
}

function takesPart({ patchId, objects }: ObjectTransition, patch: string, object: string): boolean {
  return patchId === patch && objects?.includes(object) !== false;
}

/**
 * What passes for the callbacks of an object that is about to go, while it is there still and no task runs it any more
 * (klp_module_going): whatever state its patch is in, the object is left as if it had none.
 */
export const LEAVING_MOMENTS: readonly CallbackMoment[] = ['disable', 'disabled'];

/** What is found of a patch in an object. */
export interface FoundPart {
  readonly patch: string;
  readonly object: string;
  /** Its entries were final at some time. */
  readonly isInstalled: boolean;
  /** No task can have come into its new version: no entry leads there, or only through a gate that is shut. */
  readonly isShut: boolean;
}

/**
 * What a run makes of it before it does anything else. `keep`: it is as the transition wants it. `takeBack`: an arrival was not
 * completed, or what was loaded for one, so that tasks run the object without the patch: it is pending, and nothing leads into
 * the part. `complete`: every task that has called it has run the new version; only the record is missing.
 */
export function settlePart(
  part: FoundPart,
  transition: ObjectTransition | undefined,
): 'keep' | 'takeBack' | 'complete' {
  if (part.isInstalled) return 'keep';
  const isIn = transition !== undefined && takesPart(transition, part.patch, part.object);
  if (!part.isShut) return isIn ? 'keep' : 'complete';
  // The install has yet to write its entries, or the end of the transition has restored them.
  const mayBeShut = isIn && (transition.phase === 'installing') === (transition.direction === 'patch');
  return mayBeShut && transition.phase !== 'running' ? 'keep' : 'takeBack';
}
