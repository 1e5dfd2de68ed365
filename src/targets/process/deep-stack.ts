import type { Frame, WalkPlace, WalkReason, WalkResult } from '../../unwind/walk-reliable.js';

/** A stack at one instant: the registers of its stopped thread, and its memory from the stack pointer on. */
export interface StackCopy {
  readonly registers: Buffer;
  readonly start: number;
  readonly bytes: Buffer;
}

/** A walk, and the frames of it in which all of its code is: where most of a deep stack repeats itself, they are few. */
export type Walked = WalkResult & { readonly distinct: readonly Frame[] };

/** Walks a copy. `restAt` is to be asked at every frame. */
export type WalkCopy = (copy: StackCopy, restAt: (place: WalkPlace) => undefined) => WalkResult;

const RSP = 7;
/** By DWARF number: what a function gives back as it was (System V ABI), the stack pointer and the program counter. */
const KEPT_REGISTERS = [3, 6, RSP, 12, 13, 14, 15, 16] as const;
/** Nearer to the innermost frame too little would be left out. */
const FIRST_CHECKPOINT = 16;
const ATTEND_EVERY = 2048;
const COMPARED_BYTES = 256 * 1024;

interface Checkpoint {
  readonly index: number;
  readonly registers: Float64Array;
  readonly high: number;
  /** Those from here to the bottom that are not alike. */
  distinct: readonly Frame[];
}

/**
 * A deep stack, walked from a copy while its thread runs on. Later, with the thread stopped, a walk of it needs to come only as far
 * as a frame that is as it was: the rest of a walk is a function of that frame's registers and of the memory from its
 * stack pointer up, so where these are unchanged, so is all that was found.
 */
export class DeepStack {
  readonly #copy: StackCopy;
  readonly #frames: readonly Frame[];
  /** By stack pointer. */
  readonly #checkpoints: ReadonlyMap<number, Checkpoint>;
  readonly #scratch = Buffer.allocUnsafeSlow(COMPARED_BYTES);

  private constructor(copy: StackCopy, frames: readonly Frame[], checkpoints: readonly Checkpoint[]) {
    this.#copy = copy;
    this.#frames = frames;
    this.#checkpoints = new Map(checkpoints.map((one) => [one.registers[RSP] as number, one]));
  }

  /** Undefined where the copy's walk is not reliable. `attend` is called now and then. */
  static of(copy: StackCopy, walk: WalkCopy, attend: () => void): DeepStack | undefined {
    const checkpoints: Checkpoint[] = [];
    const result = walk(copy, ({ registers, index, by, high, foundBy }) => {
      // What was read for the frame before does not lie where it will be compared: only frames below it are any use.
      if (foundBy === undefined || !isKept(foundBy)) checkpoints.length = 0;
      if (by === 'call' && index >= FIRST_CHECKPOINT && (index & (index - 1)) === 0)
        checkpoints.push({ index, registers: Float64Array.from(registers), high, distinct: [] });
      if (index % ATTEND_EVERY === 0) attend();
      return undefined;
    });
    if (!result.reliable || checkpoints.length === 0) return undefined;
    noteDistinct(result.frames, checkpoints);
    return new DeepStack(copy, result.frames, checkpoints);
  }

  /** For one walk of the stopped thread. `readMemory` reads the thread's memory. */
  begin(readMemory: (address: number, into: Uint8Array) => number): {
    readonly restAt: (place: WalkPlace) => readonly Frame[] | undefined;
    /** The walk with the frames of it that are not alike. */
    finish(result: WalkResult): Walked;
  } {
    let found: Checkpoint | undefined;
    /** Below this address the stack has changed since. */
    let changedTo = 0;
    const restAt = ({ registers, by, high }: WalkPlace) => {
      const stackPointer = registers[RSP] as number;
      const checkpoint = by === 'call' ? this.#checkpoints.get(stackPointer) : undefined;
      if (checkpoint === undefined || stackPointer < changedTo || checkpoint.high !== high) return undefined;
      if (KEPT_REGISTERS.some((at) => !Object.is(registers[at], checkpoint.registers[at]))) return undefined;
      const difference = this.#findDifference(stackPointer, readMemory);
      if (difference !== undefined) {
        changedTo = difference;
        return undefined;
      }
      found = checkpoint;
      return this.#frames.slice(checkpoint.index);
    };
    return {
      restAt,
      finish: (result) => {
        const { frames } = result;
        const above = found === undefined ? 0 : frames.length - (this.#frames.length - found.index);
        const distinct = found === undefined ? frames : [...frames.slice(0, above), ...found.distinct];
        return { ...result, distinct };
      },
    };
  }

  /** The end of the first stretch from `address` to the end of the copy that is not as it was. */
  #findDifference(
    address: number,
    readMemory: (address: number, into: Uint8Array) => number,
  ): number | undefined {
    const { start, bytes } = this.#copy;
    for (let at = address - start; at < bytes.length; at += COMPARED_BYTES) {
      const end = Math.min(bytes.length, at + COMPARED_BYTES);
      const now = this.#scratch.subarray(0, end - at);
      if (readMemory(start + at, now) !== now.length || bytes.compare(now, 0, now.length, at, end) !== 0)
        return start + end;
    }
    return undefined;
  }
}

function isKept(register: number): boolean {
  return KEPT_REGISTERS.some((kept) => kept === register);
}

/** From the bottom up, so that each checkpoint has what lies below it. */
function noteDistinct(frames: readonly Frame[], checkpoints: readonly Checkpoint[]): void {
  const seen = new Map<string, Frame>();
  let index = frames.length;
  for (const checkpoint of [...checkpoints].reverse()) {
    while (index > checkpoint.index) {
      index -= 1;
      const frame = frames[index] as Frame;
      seen.set(`${frame.pc} ${frame.lookup}`, frame);
    }
    checkpoint.distinct = [...seen.values()];
  }
}

/** Whether a walk was given up for its length alone. */
export function isTooDeep(result: WalkResult): boolean {
  return !result.reliable && result.reason.code === ('too-deep' satisfies WalkReason);
}
