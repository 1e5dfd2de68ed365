import type { LivegraftError } from '../base/errors.js';

/** Functions of a patch that run when an object of it is changed (struct klp_callbacks, include/linux/livepatch.h). */
export type CallbackKind = 'prePatch' | 'postPatch' | 'preUnpatch' | 'postUnpatch';

/**
 * How far an object has come: which callbacks have had their turn, whether or not it has them. Kept in the target, so
 * that a later run knows.
 */
export type CallbackStage = 'none' | 'prePatched' | 'postPatched' | 'preUnpatched';

/** Points of a transition at which callbacks may have their turn. */
export type CallbackMoment =
  /** Before the first redirect is written. */
  | 'enable'
  /** All tasks have the new version. */
  | 'enabled'
  /** The patch is about to go: the transition begins, or is turned around. */
  | 'disable'
  /** No task has the new version any more. */
  | 'disabled';

type Awaitable<T> = T | Promise<T>;

/** One object of a patch in one target, as far as callbacks go; of a target that has to be waited for. */
export interface AwaitableCallbackObject {
  /** For reports. */
  readonly name: string;
  readonly stage: CallbackStage;
  /** Whether the patch has this callback for the object. */
  has(kind: CallbackKind): boolean;
  /**
   * Runs it to its end, and keeps the stage that it leads to ({@link stageAfter}). Throws `callback-veto` when a pre-patch callback returned
   * anything but 0. A callback that fails in another way is a veto too if it is a pre-patch one; of any other kind it
   * has had its turn all the same, and the failure is returned. Throws when it could not be begun; then the stage is as it was.
   */
  run(kind: CallbackKind): Awaitable<LivegraftError | undefined>;
  /** Keeps a stage that no callback led to. */
  setStage(stage: CallbackStage): Awaitable<void>;
}

/** One whose callbacks have run when the call returns. */
export interface CallbackObject extends AwaitableCallbackObject {
  run(kind: CallbackKind): LivegraftError | undefined;
  setStage(stage: CallbackStage): void;
}

export interface CallbackReport {
  readonly object: string;
  readonly callback: CallbackKind;
  readonly failure: LivegraftError | undefined;
}

/**
 * What has its turn at a moment; undefined when nothing has. The rules are those of the kernel
 * (Documentation/livepatch/callbacks.rst): a patch that is turned around before it was complete has neither its post-patch
 * nor its pre-unpatch callback run, and whatever a pre-patch callback did, the post-unpatch one undoes.
 */
export function callbackAt(stage: CallbackStage, moment: CallbackMoment): CallbackKind | undefined {
  const isBetween = stage === 'prePatched' || stage === 'preUnpatched';
  switch (moment) {
    case 'enable':
      return stage === 'none' ? 'prePatch' : undefined;
    case 'enabled':
      return isBetween ? 'postPatch' : undefined;
    case 'disable':
      return stage === 'postPatched' ? 'preUnpatch' : undefined;
    case 'disabled':
      return isBetween ? 'postUnpatch' : undefined;
  }
}

/** The stage that a callback leads to, unless it is a veto, which leads nowhere. */
export function stageAfter(kind: CallbackKind): CallbackStage {
  switch (kind) {
    case 'prePatch':
      return 'prePatched';
    case 'postPatch':
      return 'postPatched';
    case 'preUnpatch':
      return 'preUnpatched';
    case 'postUnpatch':
      return 'none';
  }
}

/**
 * Gives the callbacks of all objects their turn. What `run` throws, a veto above all, passes through, and the objects behind
 * have had none: whoever gives the patch up then passes `disabled`, which takes back what has run.
 */
export async function passMoment(
  objects: readonly AwaitableCallbackObject[],
  moment: CallbackMoment,
  onRun: (report: CallbackReport) => void,
): Promise<void> {
  for (const { object, callback } of turnsAt(objects, moment)) {
    if (object.has(callback)) onRun({ object: object.name, callback, failure: await object.run(callback) });
    else await object.setStage(stageAfter(callback));
  }
}

/** {@link passMoment} where nothing has to be waited for. */
export function passMomentAtOnce(
  objects: readonly CallbackObject[],
  moment: CallbackMoment,
  onRun: (report: CallbackReport) => void,
): void {
  for (const { object, callback } of turnsAt(objects, moment)) {
    if (object.has(callback)) onRun({ object: object.name, callback, failure: object.run(callback) });
    else object.setStage(stageAfter(callback));
  }
}

/** An object's stage is looked at when it is its turn. */
function* turnsAt<O extends AwaitableCallbackObject>(
  objects: readonly O[],
  moment: CallbackMoment,
): Generator<{ readonly object: O; readonly callback: CallbackKind }> {
  for (const object of objects) {
    const callback = callbackAt(object.stage, moment);
    if (callback !== undefined) yield { object, callback };
  }
}
