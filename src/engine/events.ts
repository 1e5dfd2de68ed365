import type { CallbackKind } from './callbacks.js';
import type { ConsistencyModel, Direction, PatchState, StragglerReason, TaskId } from './target.js';

/** What the engine tells while a transition runs. The same union feeds log, command line and web. Times are ms since the transition began. */
export type TransitionEvent =
  | {
      readonly kind: 'started';
      readonly direction: Direction;
      readonly model: ConsistencyModel;
      readonly tasks: number;
    }
  | {
      readonly kind: 'taskSwitched';
      readonly task: TaskId;
      readonly name: string;
      readonly attempts: number;
      readonly atMs: number;
    }
  /** Tried and refused. */
  | {
      readonly kind: 'taskWaiting';
      readonly task: TaskId;
      readonly name: string;
      readonly attempts: number;
      readonly reason: StragglerReason;
      readonly atMs: number;
    }
  | {
      readonly kind: 'taskCreated';
      readonly task: TaskId;
      readonly name: string;
      readonly state: PatchState;
      readonly atMs: number;
    }
  | { readonly kind: 'taskExited'; readonly task: TaskId; readonly atMs: number }
  /** A callback of the patch has had its turn. `failure`: why it did not run to its end. */
  | {
      readonly kind: 'callback';
      readonly object: string;
      readonly callback: CallbackKind;
      readonly failure: string | undefined;
      readonly atMs: number;
    }
  | { readonly kind: 'reversing'; readonly direction: Direction; readonly why: string; readonly atMs: number }
  | { readonly kind: 'progress'; readonly switched: number; readonly total: number; readonly atMs: number }
  | { readonly kind: 'finished'; readonly direction: Direction; readonly atMs: number };

/** A task that has not switched, with all that is known of why. */
export interface Straggler {
  readonly task: TaskId;
  readonly name: string;
  readonly attempts: number;
  readonly sinceMs: number;
  readonly reason: StragglerReason;
}

export type TransitionResult =
  /** Every task has the state of `direction`. After a reverse this is the direction that was turned to. */
  | {
      readonly kind: 'complete';
      readonly direction: Direction;
      readonly tasks: number;
      readonly durationMs: number;
      /** Some tasks were switched without a look at their stacks. */
      readonly forced: boolean;
    }
  /** Time ran out or the caller asked to stop. The target is consistent; the transition can be continued or reversed. */
  | {
      readonly kind: 'incomplete';
      readonly direction: Direction;
      readonly stragglers: readonly Straggler[];
      readonly switched: number;
      readonly durationMs: number;
    };
