import type { Claim } from '../claims.js';

/**
 * What a brief proof knows of a frame, in one number: where the stack pointer and the frame pointer point, and where the frame pointer's
 * value on entry is saved, counted in words below the CFA.
 */
export type Frame = number;

/** Bits of the stack pointer (no more than the most words that fit), then of the frame pointer, then of the saved one's place. */
const POINTER_BITS = 11;
const SAVED_SHIFT = 2 * POINTER_BITS;
export const MAX_POINTER = (1 << POINTER_BITS) - 1;
export const MAX_SAVED = (1 << (31 - SAVED_SHIFT)) - 1;

/** Of the stack pointer: it is somewhere else than at a known distance from the CFA. */
export const ASTRAY = 0;
/** Words of the frame pointer: its value on entry, nothing that is known, or from two on a place below the CFA. */
export const ON_ENTRY = 0;
export const LOST = 1;

const WORD_BYTES = 8;

export function makeFrame(stackPointer: number, framePointer: number, saved: number): Frame {
  return stackPointer | (framePointer << POINTER_BITS) | (saved << SAVED_SHIFT);
}

export function stackPointerOf(frame: Frame): number {
  return frame & MAX_POINTER;
}

export function framePointerOf(frame: Frame): number {
  return (frame >> POINTER_BITS) & MAX_POINTER;
}

export function savedOf(frame: Frame): number {
  return frame >> SAVED_SHIFT;
}

/** Behind a call, before the first instruction: the return address lies at the stack pointer. */
export const ENTRY_FRAME = makeFrame(1, ON_ENTRY, 0);

/** What holds in both. */
export function joinFrames(a: Frame, b: Frame): Frame {
  const stackPointer = stackPointerOf(a) === stackPointerOf(b) ? stackPointerOf(a) : ASTRAY;
  const framePointer = framePointerOf(a) === framePointerOf(b) ? framePointerOf(a) : LOST;
  return makeFrame(stackPointer, framePointer, savedOf(a) === savedOf(b) ? savedOf(a) : 0);
}

/** A claim holds in a frame when the frame's bits under the mask are the value. */
export interface FramePattern {
  readonly mask: number;
  readonly value: number;
}

const NEVER: FramePattern = { mask: 0, value: 1 };

/** When a claim holds; never for one of another kind than compilers' code has. */
export function patternOf(
  claim: Claim | undefined,
  registers: { readonly stackPointer: number; readonly framePointer: number; readonly returnAddress: number },
): FramePattern {
  if (claim === undefined || claim.isSignalFrame || claim.isOutermost || claim.otherRegisters.length > 0)
    return NEVER;
  const { stackPointer, framePointer, returnAddress } = registers;
  const words = claim.cfaOffset / WORD_BYTES;
  if (!Number.isInteger(words) || words < 1 || words > MAX_POINTER) return NEVER;
  let [mask, value] = [0, 0];
  if (claim.cfaRegister === stackPointer)
    [mask, value] = [makeFrame(MAX_POINTER, 0, 0), makeFrame(words, 0, 0)];
  else if (claim.cfaRegister === framePointer && words > LOST)
    [mask, value] = [makeFrame(0, MAX_POINTER, 0), makeFrame(0, words, 0)];
  else return NEVER;
  for (const [i, register] of claim.savedRegisters.entries()) {
    const place = 0 - (claim.savedOffsets[i] as number) / WORD_BYTES;
    if (register === returnAddress && place === 1) continue;
    if (register !== framePointer || !Number.isInteger(place) || place < 2 || place > MAX_SAVED) return NEVER;
    mask |= makeFrame(0, 0, MAX_SAVED);
    value |= makeFrame(0, 0, place);
  }
  for (const register of claim.sameRegisters) {
    if (register !== framePointer || claim.cfaRegister === framePointer) return NEVER;
    mask |= makeFrame(0, MAX_POINTER, 0);
  }
  return { mask, value };
}
