import type { LivegraftError } from '../base/errors.js';
import type { AwaitableCallbackObject } from './callbacks.js';

/** What the engine asks of a thing that can be patched. Implemented by `src/targets/*`; the engine knows no other. */

/** Identifies a task inside its target, for good: a thread id, or a kernel task's pid. Never reused by a target. */
export type TaskId = string & { readonly taskId: unique symbol };
export const taskId = (text: string): TaskId => text as TaskId;

/** As `klp_transition_patched` and friends: the state of a task. `idle` when no transition runs. */
export type PatchState = 'unpatched' | 'patched' | 'idle';

export type ConsistencyModel = 'immediate' | 'stop' | 'lazy' | 'hybrid';

/** Whether some tasks may switch before the others. */
export function switchesPerTask(model: ConsistencyModel): boolean {
  return model === 'hybrid' || model === 'lazy';
}

export interface TaskInfo {
  readonly id: TaskId;
  /** For people: the thread's name. */
  readonly name: string;
  readonly state: PatchState;
}

/** A frame as the reports show it, innermost first. */
export interface ReportedFrame {
  readonly address: number;
  /** `function+0x12`, or undefined where no symbol covers the address. */
  readonly symbol: string | undefined;
  readonly module: string | undefined;
}

/** Why a task could not be switched. Shown for every straggler; stable `kind`s. */
export type StragglerReason =
  /** Its stack is reliable and holds a function that this transition takes away. `frame` counts from 0, innermost. */
  | {
      readonly kind: 'busy';
      readonly function: string;
      readonly frame: number;
      readonly frames: readonly ReportedFrame[];
    }
  /** Its stack could not be proven. `cause` is the walk's reason code, `detail` its text. */
  | {
      readonly kind: 'unreliable';
      readonly cause: string;
      readonly detail: string;
      readonly frames: readonly ReportedFrame[];
    }
  /** It did not stop in time (uninterruptible sleep, scheduler). */
  | { readonly kind: 'unstoppable'; readonly detail: string }
  /** It has not been looked at yet. */
  | { readonly kind: 'waiting' }
  /** It switches itself at a barrier which it has not reached. */
  | { readonly kind: 'beforeBarrier'; readonly barrier: string };

export type SwitchOutcome =
  | { readonly kind: 'switched' }
  | { readonly kind: 'refused'; readonly reason: StragglerReason }
  /** The task ended. */
  | { readonly kind: 'gone' };

/** What happened in the target while the engine waited. */
export type TargetEvent =
  | { readonly kind: 'taskCreated'; readonly task: TaskInfo; readonly parent: TaskId | undefined }
  | { readonly kind: 'taskExited'; readonly task: TaskId }
  /** The task may have left what blocked it (it reached a system call boundary, it ran): worth another try now. */
  | { readonly kind: 'taskMoved'; readonly task: TaskId }
  /** The task switched itself at a barrier. */
  | { readonly kind: 'taskSwitched'; readonly task: TaskId }
  /** Nothing is left to patch: the target exited or replaced itself. */
  | { readonly kind: 'targetGone'; readonly error: LivegraftError };

export type Direction = 'patch' | 'unpatch';

type Awaitable<T> = T | Promise<T>;

/**
 * One transition of one patch in one target. The target has been prepared (memory mapped, code written) before the
 * engine sees it. Every method leaves the target in a state that is consistent should the caller die right after it.
 *
 * Promises of the caller: `install` once, first; the switch calls only between `install` and `finish`; one call at a time.
 */
export interface TransitionTarget {
  /** A name for reports: the pid, or the kernel. */
  readonly name: string;
  /** Where tasks switch themselves (reported as `taskSwitched`, and by `tasks`), while a transition runs; undefined where nowhere. */
  readonly barrier?: string | undefined;
  /** Objects of the patch, in the order of the patch; undefined where patches have no callbacks. */
  callbackObjects?(): Awaitable<readonly AwaitableCallbackObject[]>;
  /**
   * Makes every redirect choose by task; all tasks keep the version they have. All redirects are written or none.
   * Rejects with a LivegraftError and nothing changed. After a resumed transition it finds the work done and returns.
   */
  install(direction: Direction): Awaitable<void>;
  /** All tasks that exist now. New ones carry the state that they inherited. */
  tasks(): Awaitable<readonly TaskInfo[]>;
  /**
   * Stops one task, and, in the same stop, walks its stack and sets its state to `to` when the stack is reliable and
   * holds none of the functions that leave in the current direction. `unchecked` sets it without looking.
   */
  trySwitch(
    task: TaskId,
    to: 'unpatched' | 'patched',
    check: 'checked' | 'unchecked',
  ): Awaitable<SwitchOutcome>;
  /** The same for all tasks stopped together: all switch, or none does and each refusal is listed. */
  trySwitchAll(
    to: 'unpatched' | 'patched',
    check: 'checked' | 'unchecked',
  ): Awaitable<
    | { readonly switched: true }
    | { readonly switched: false; readonly refusals: ReadonlyMap<TaskId, StragglerReason> }
  >;
  /**
   * Asks the target to say `taskMoved` at the task's next tidy point (a system call boundary), where it can.
   * Returns false where it can't; then only time helps. It may hold a task of which it has said `taskMoved` until the
   * next `trySwitch` for it, which the engine calls at once, also when nothing is left to switch.
   */
  watchTask(task: TaskId): Awaitable<boolean>;
  /** Waits at most `timeoutMs` (0: only collects) for something to happen. */
  waitForEvents(timeoutMs: number): Awaitable<readonly TargetEvent[]>;
  /** The direction was turned around in mid-transition: which functions leave is now the other set. Recorded. */
  reverse(direction: Direction): Awaitable<void>;
  /**
   * Every task has the state that `direction` leads to. Patch: redirects become direct jumps; unpatch: the code
   * below is restored. Per-task state is given back. Idempotent.
   */
  finish(direction: Direction): Awaitable<void>;
}
