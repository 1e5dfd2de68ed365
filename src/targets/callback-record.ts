import { BORROWED_CALL_RECORD_BYTES } from '../arch/architecture.js';
import { LivegraftError } from '../base/errors.js';
import { type CallbackKind, type CallbackStage, stageAfter } from '../engine/callbacks.js';

/** Four 32-bit words: phase and result (as a borrowed call keeps them), the callback that these are of, the object's stage. */
export const CALLBACK_RECORD_BYTES = BORROWED_CALL_RECORD_BYTES + 8;

/** Of an object whose callbacks all have returned. */
export const CALLBACK_IDLE = 0;
/** A task is being led to the callback, or is in it. It makes it `BORROWED_CALL_RETURNED` when it comes back. */
export const CALLBACK_BEGUN = 1;

const KINDS: readonly CallbackKind[] = ['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch'];
const STAGES: readonly CallbackStage[] = ['none', 'prePatched', 'postPatched', 'preUnpatched'];
const NO_KIND = 0;

/**
 * How far the callbacks of an object have come, kept in the patch's memory: whoever comes after a livegraft that was killed goes on
 * from there.
 */
export interface CallbackRecord {
  readonly phase: number;
  readonly result: number;
  readonly kind: CallbackKind | undefined;
  readonly stage: CallbackStage;
}

export function encodeCallbackRecord({ phase, result, kind, stage }: CallbackRecord): Uint8Array {
  const bytes = new Uint8Array(CALLBACK_RECORD_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, phase, true);
  view.setInt32(4, result, true);
  view.setUint32(8, kind === undefined ? NO_KIND : KINDS.indexOf(kind) + 1, true);
  view.setUint32(12, STAGES.indexOf(stage), true);
  return bytes;
}

/** `bytes` has at least `CALLBACK_RECORD_BYTES`. */
export function parseCallbackRecord(bytes: Uint8Array): CallbackRecord {
  const view = new DataView(bytes.buffer, bytes.byteOffset, CALLBACK_RECORD_BYTES);
  return {
    phase: view.getUint32(0, true),
    result: view.getInt32(4, true),
    kind: KINDS[view.getUint32(8, true) - 1],
    stage: STAGES[view.getUint32(12, true)] ?? 'none',
  };
}

/** `result`: undefined when it did not return. What other callbacks than pre-patch ones return is not even defined. */
export function isVeto(kind: CallbackKind, result: number | undefined): boolean {
  return kind === 'prePatch' && result !== 0;
}

/** The stage of an object behind a callback: a veto leaves it where it was, and any other callback has had its turn. */
export function stageBehind(
  kind: CallbackKind,
  stage: CallbackStage,
  result: number | undefined,
): CallbackStage {
  return isVeto(kind, result) ? stage : stageAfter(kind);
}

export function vetoError(
  patch: { readonly id: string; readonly name: string },
  why: string,
  cause?: unknown,
): LivegraftError {
  return new LivegraftError(
    'callback-veto',
    `the pre-patch callback of ${patch.name} refuses the patch: ${why}`,
    {
      remedy:
        'see what the patch says of its conditions; nothing has been changed but what the callback itself did',
      details: { patch: patch.id, why },
      cause,
    },
  );
}
