import type { Flow, StackOp } from './instruction.js';

/**
 * Many instructions in typed arrays: what hot loops over whole programs read instead of `Instruction` objects. The
 * same facts, as numbers.
 */

/** {@link Flow} as a number. */
export const FlowCode = {
  next: 0,
  jump: 1,
  branch: 2,
  indirectJump: 3,
  call: 4,
  indirectCall: 5,
  systemCall: 6,
  return: 7,
  interruptReturn: 8,
  deadEnd: 9,
  breakpoint: 10,
} as const satisfies Readonly<Record<Flow, number>>;

/**
 * The one stack operation of an instruction, as {@link StackOp} has it: `a` is the register it names first (what is
 * pushed, popped, stored, the destination), `b` the base or source, `value` the offset, mask or size.
 */
export const OpCode = {
  none: 0,
  push: 1,
  pushOther: 2,
  pop: 3,
  popOther: 4,
  add: 5,
  and: 6,
  store: 7,
  load: 8,
  leave: 9,
  /** `value`: size, plus the nesting level times 65536. */
  enter: 10,
  callPush: 11,
  returnPop: 12,
} as const;

/** {@link InstructionTable.effects}: operation, its two registers, and a bit per register that is overwritten otherwise. */
export function makeEffect(op: number, a: number, b: number, writes: number): number {
  return op | (a << 4) | (b << 8) | (writes << 12);
}

/** {@link OpCode} */
export function opOf(effect: number): number {
  return effect & 15;
}

export function firstOf(effect: number): number {
  return (effect >> 4) & 15;
}

export function secondOf(effect: number): number {
  return (effect >> 8) & 15;
}

/** Bit per DWARF number: registers that are overwritten by something that the operation does not describe. */
export function writesOf(effect: number): number {
  return effect >>> 12;
}

/** Bits of {@link InstructionTable.touches}. */
export const TOUCHES_FRAME = 1 << 16;
export const TOUCHES_ALL = 2 * TOUCHES_FRAME - 1;

/** {@link InstructionTable.targets} of an instruction without a direct target. */
export const NO_TARGET = -0x8000_0000;

/** Instructions in address order, one index each. Grows as it is filled. */
export class InstructionTable {
  count = 0;
  /** Position of the first byte. */
  offsets = new Int32Array(0);
  lengths = new Uint8Array(0);
  /** {@link FlowCode} */
  flows = new Uint8Array(0);
  /** Positions, in the same number line as `offsets`, perhaps outside of the code. */
  targets = new Int32Array(0);
  /**
   * What each does to registers and stack: {@link opOf}, {@link firstOf} and {@link secondOf} by DWARF number, and {@link writesOf}.
   */
  effects = new Int32Array(0);
  /** Of the operation. */
  values = new Int32Array(0);
  /**
   * Bit per DWARF number: with none of these registers known, a state of registers and stack slots is the same behind the
   * instruction. {@link TOUCHES_FRAME} where that is so for a state of no more than stack pointer, frame pointer and slots.
   * {@link TOUCHES_ALL} where it is more than that to be looked at: the stack pointer is moved, or control may go elsewhere.
   */
  touches = new Uint32Array(0);
  /** Indexes of the instructions right behind which none begins. */
  readonly lasts: number[] = [];
  /** How many of {@link transfers} there are. */
  transferCount = 0;
  /** Indexes of the instructions behind which control may go elsewhere, in order: all but next, system calls and breakpoints. */
  transfers = new Int32Array(0);

  constructor(capacity: number) {
    this.reserve(capacity);
  }

  clear(): void {
    this.count = 0;
    this.transferCount = 0;
    this.lasts.length = 0;
  }

  reserve(capacity: number): void {
    if (capacity <= this.offsets.length) return;
    const size = Math.max(capacity, this.offsets.length * 2, 64);
    this.offsets = grown(this.offsets, new Int32Array(size));
    this.lengths = grown(this.lengths, new Uint8Array(size));
    this.flows = grown(this.flows, new Uint8Array(size));
    this.targets = grown(this.targets, new Int32Array(size));
    this.effects = grown(this.effects, new Int32Array(size));
    this.values = grown(this.values, new Int32Array(size));
    this.touches = grown(this.touches, new Uint32Array(size));
    this.transfers = grown(this.transfers, new Int32Array(size));
  }

  /** The index of the instruction that starts at a position, -1 when none does. */
  findAt(position: number): number {
    let low = 0;
    let high = this.count;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.offsets[middle] as number) < position) low = middle + 1;
      else high = middle;
    }
    return low < this.count && this.offsets[low] === position ? low : -1;
  }
}

/** {@link InstructionTable.effects} of what does nothing to registers or stack. */
export const NO_EFFECT = 0;

/** No effect on registers, stack or flow, as padding has none (and some other instructions). */
export function isInert(table: InstructionTable, i: number): boolean {
  return (
    (table.effects[i] === NO_EFFECT && table.flows[i] === FlowCode.next) ||
    table.flows[i] === FlowCode.breakpoint
  );
}

function grown<T extends Int32Array | Uint8Array | Uint32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

/** Decodes stretches of code into a table without making an object per instruction. */
export interface InstructionSweeper {
  /**
   * Appends the instructions from `start` on to the table. Returns where it stopped: at `end`, or at the first byte
   * that no instruction of `[start, end)` starts at. Of a run of breakpoints, which fills up pages, no more than a page becomes
   * instructions. Never throws on any bytes.
   */
  sweep(bytes: Uint8Array, start: number, end: number, into: InstructionTable): number;
}
