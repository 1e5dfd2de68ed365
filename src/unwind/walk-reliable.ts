import { hex } from '../base/brand.js';
import type { RegisterRule } from '../cfi/row.js';
import { evaluateExpression } from '../dwarf/expression.js';
import type { CodeModule } from './code-module.js';
import { lookupAddress, type ModuleMap, type UnknownFrame } from './module-map.js';
import { StackWindow } from './stack-window.js';
import type { UnwindRow } from './unwind-row.js';

export interface WalkInput {
  /** 17 registers in DWARF order (x86-64: 16 is the program counter), as signed numbers. Overwritten by the walk. */
  readonly registers: Float64Array;
  /** Reads target memory; returns how many bytes could be read. */
  readonly readMemory: (address: number, into: Uint8Array) => number;
  /** The mapping that a stack address lies in, undefined for none that is readable and writable. */
  readonly stackLimits: (address: number) => StackLimits | undefined;
  readonly modules: ModuleMap;
  readonly maxFrames?: number;
  /** The program counter is a return address: the task stopped by calling, as one that sleeps in a scheduler did. */
  readonly startsAtReturnAddress?: boolean;
  /**
   * Asked at every frame but the first. An answer is that frame and all below it, of a walk that would go on just so: this
   * one then ends there.
   */
  readonly restAt?: (place: WalkPlace) => readonly Frame[] | undefined;
  /** The stacks of a kernel: exception frames lie on them, and they lead from one to the next. */
  readonly nestedStacks?: NestedStacks;
}

/** Where a walk is, and how it came there. */
export interface WalkPlace {
  /** Of this frame, as far as they are known; the walk goes on to change them. */
  readonly registers: Float64Array;
  /** Counted from 0 at the innermost. */
  readonly index: number;
  readonly by: Frame['by'];
  /** Where its stack ends. */
  readonly high: number;
  /**
   * The register that the frame before was found by, if all that was read for it lies in that frame: neither below its own stack pointer
   * nor where an expression leads. Undefined otherwise.
   */
  readonly foundBy: number | undefined;
}

/**
 * How a kernel's stacks differ from those of a process: the registers of an exception lie on the stack it came in on,
 * and interrupts, softirqs and NMIs have stacks of their own. Each stack is entered at most once in one walk.
 */
export interface NestedStacks {
  /**
   * Where a frame of saved registers leads, given the registers in it and the address right behind it: to code of
   * the kernel, to user mode, which ends the walk, or nowhere, with the reason.
   */
  entryOf(registers: Float64Array, frameEnd: number): 'kernel' | 'user' | { readonly damaged: string };
  /** Whether a stack may end at a stack pointer where the tables say that it does; anywhere without. */
  readonly mayEndAt?: (stackPointer: number) => boolean;
  /**
   * In place of a row by the frame pointer where that is odd, in a kernel whose entry code says so where it has saved registers. To the
   * row it is the even address below.
   */
  readonly encodedFrame?: UnwindRow;
  /** With `encodedFrame`: whether the frame pointer that the walk begins with is odd, which its number may be too large to say. */
  readonly startsEncoded?: boolean;
}

export interface StackLimits {
  readonly low: number;
  readonly high: number;
}

export interface Frame {
  readonly pc: number;
  /** The address in the original code that `pc` stands for, less one where it is a return address. */
  readonly lookup: number;
  readonly stackPointer: number;
  readonly module: CodeModule;
  /** How the frame was found: as the interrupted one, by the caller's row, out of a signal frame. */
  readonly by: 'stopped' | 'call' | 'signal';
  readonly isDisplaced: boolean;
}

export type WalkReason =
  | UnknownFrame
  | 'cfa-unknown'
  | 'cfa-not-rising'
  | 'outside-stack'
  | 'stack-unreadable'
  | 'register-unknown'
  | 'exception-frame-damaged'
  | 'ends-too-early'
  | 'too-deep';

export type WalkResult =
  | { readonly reliable: true; readonly frames: readonly Frame[] }
  | {
      readonly reliable: false;
      readonly frames: readonly Frame[];
      readonly reason: { readonly code: WalkReason; readonly detail: string };
      /** The program counter that the walk could not get past: of its last frame, or of one that is no frame. */
      readonly pc: number;
    };

const RBP = 6;
const RSP = 7;
const PC = 16;
const DEFAULT_MAX_FRAMES = 200_000;

/**
 * Walks the stack of a stopped task down to its true bottom, every frame justified, or says at which frame and why it
 * could not. There is no guess on this path.
 */
export function walkReliable(input: WalkInput): WalkResult {
  return new Walk(input).run();
}

class Walk {
  readonly #input: WalkInput;
  readonly #frames: Frame[] = [];
  readonly #window: StackWindow;
  #limits: StackLimits = { low: 0, high: 0 };
  /** See {@link WalkPlace}; kept only for whoever asks. */
  #foundBy: number | undefined;
  /** The frame pointer was odd: it leads to saved registers. */
  #isEncoded: boolean;
  /** The low ends of the stacks that were entered. */
  readonly #visited: number[] = [];

  constructor(input: WalkInput) {
    this.#input = input;
    this.#window = new StackWindow(input.readMemory, input.restAt !== undefined);
    this.#isEncoded = input.nestedStacks?.startsEncoded === true;
    if (this.#isEncoded) input.registers[RBP] = evenBelow(input.registers[RBP] as number);
  }

  run(): WalkResult {
    const { registers, stackLimits, startsAtReturnAddress, restAt } = this.#input;
    const limits = stackLimits(registers[RSP] as number);
    if (limits === undefined)
      return this.#fail('outside-stack', `${hex(registers[RSP] as number)} is no stack`);
    this.#limits = limits;
    this.#visited.push(limits.low);
    this.#window.load(registers[RSP] as number, limits.high);
    let by: Frame['by'] = startsAtReturnAddress === true ? 'call' : 'stopped';
    for (;;) {
      if (restAt !== undefined && this.#frames.length > 0) {
        const place = { registers, index: this.#frames.length, by, high: this.#limits.high };
        const rest = restAt({ ...place, foundBy: this.#foundBy });
        if (rest !== undefined) return { reliable: true, frames: this.#frames.concat(rest) };
      }
      const row = this.#pushFrame(by);
      if ('reliable' in row) return row;
      if (row.isOutermost) return this.#end();
      const end = this.#toCaller(row);
      if (end !== undefined) return end;
      if (row.isReturn !== true) by = row.isSignalFrame ? 'signal' : 'call';
    }
  }

  /** The tables say so of the code; what is left on the stack may say otherwise. */
  #end(): WalkResult {
    const { registers, nestedStacks } = this.#input;
    const at = registers[RSP] as number;
    if (nestedStacks?.mayEndAt?.(at) === false)
      return this.#fail('ends-too-early', `${hex(at)} is not where a stack ends`);
    return this.#done();
  }

  #done(): WalkResult {
    return { reliable: true, frames: this.#frames };
  }

  #fail(code: WalkReason, detail: string): WalkResult {
    const pc = this.#input.registers[PC] as number;
    return { reliable: false, frames: this.#frames, reason: { code, detail }, pc };
  }

  /** Notes the frame that the registers stand for. The row of its code, or how the walk ends here. */
  #pushFrame(by: Frame['by']): UnwindRow | WalkResult {
    const { registers, modules, maxFrames = DEFAULT_MAX_FRAMES } = this.#input;
    const frames = this.#frames;
    const pc = registers[PC] as number;
    const interrupted = by !== 'call';
    const info = modules.frameInfo(pc, interrupted);
    const encoded = this.#input.nestedStacks?.encodedFrame;
    if (!info.known) return this.#fail(info.code, `${hex(pc)} (frame ${frames.length}): ${info.detail}`);
    const { row, module, isDisplaced } = info;
    const lookup = lookupAddress(isDisplaced ? info.original : pc, interrupted);
    frames.push({ pc, lookup, stackPointer: registers[RSP] as number, module, by, isDisplaced });
    if (frames.length >= maxFrames && !row.isOutermost)
      return this.#fail('too-deep', `more than ${maxFrames} frames`);
    return (row.cfaRegister === RBP && this.#isEncoded ? encoded : undefined) ?? row;
  }

  /** Turns the registers into the caller's. Returns how the walk ends, undefined where it goes on. */
  #toCaller(row: UnwindRow): WalkResult | undefined {
    const { registers, nestedStacks } = this.#input;
    const pc = registers[PC] as number;
    const cfa = canonicalFrameAddress(row, registers, this.#window);
    if (cfa === undefined) return this.#fail('cfa-unknown', `the frame of ${hex(pc)} can't be computed`);
    const failure = this.#checkFrameAddress(row, cfa);
    if (failure !== undefined) return failure;
    if (this.#input.restAt !== undefined)
      this.#foundBy = readsOwnFrame(row, (registers[RSP] as number) - cfa) ? row.cfaRegister : undefined;
    const problem = restoreCaller(row, cfa, registers, this.#window);
    if (problem !== undefined)
      return this.#fail(problem, `the caller of ${hex(pc)} can't be read from its frame at ${hex(cfa)}`);
    const savedAt = nestedStacks?.encodedFrame === undefined ? -1 : row.savedRegisters.indexOf(RBP);
    if (savedAt >= 0) {
      this.#isEncoded = this.#window.isOdd(cfa + (row.savedOffsets[savedAt] as number));
      if (this.#isEncoded) registers[RBP] = evenBelow(registers[RBP] as number);
    }
    if (nestedStacks !== undefined && row.savedRegisters.includes(RSP)) {
      const end = this.#leaveException(nestedStacks, pc, cfa);
      if (end !== undefined) return end;
    }
    if (row.isSignalFrame) this.#window.load(registers[RSP] as number, this.#limits.high);
    return undefined;
  }

  #checkFrameAddress(row: UnwindRow, cfa: number): WalkResult | undefined {
    const { registers, nestedStacks } = this.#input;
    const pc = registers[PC] as number;
    // The handler may run on an alternate stack: the interrupted one lies wherever its saved registers say.
    if (row.isSignalFrame && nestedStacks === undefined) return this.#enter(cfa, 'interrupted stack', pc);
    // A kernel function that calls on another stack finds its own through a word saved there.
    if (nestedStacks !== undefined && (row.cfaExpression !== undefined || this.#isLinkedBy(row))) {
      const isElsewhere = cfa <= this.#limits.low || cfa > this.#limits.high;
      const failure = isElsewhere ? this.#enter(cfa, 'calling stack', pc) : undefined;
      if (failure !== undefined) return failure;
    }
    const { low, high } = this.#limits;
    const stackPointer = registers[RSP] as number;
    if (cfa <= stackPointer && stackPointer >= low && stackPointer <= high)
      return this.#fail('cfa-not-rising', `${hex(cfa)} of ${hex(pc)} is not above ${hex(stackPointer)}`);
    if (cfa > high || (cfa & 7) !== 0) {
      return this.#fail(
        'outside-stack',
        `${hex(cfa)} of ${hex(pc)} is not in the stack that ends at ${hex(high)}`,
      );
    }
    return undefined;
  }

  /**
   * Whether the frame pointer leads to another stack, and the word at the top of this one does as well: so `asm_call_on_stack` of 5.8 to 5.11
   * calls handlers of interrupts (arch/x86/entry/entry_64.S).
   */
  #isLinkedBy(row: UnwindRow): boolean {
    if (row.cfaRegister !== RBP) return false;
    const framePointer = this.#input.registers[RBP] as number;
    const { low, high } = this.#limits;
    const isElsewhere = framePointer < low || framePointer >= high;
    return isElsewhere && this.#window.read64(high - 8) === framePointer;
  }

  /** The frame of `pc` was one of registers that an exception saved, right below `frameEnd`; they are restored. */
  #leaveException(nestedStacks: NestedStacks, pc: number, frameEnd: number): WalkResult | undefined {
    const { registers } = this.#input;
    const entry = nestedStacks.entryOf(registers, frameEnd);
    if (entry === 'user') return this.#done();
    if (entry !== 'kernel')
      return this.#fail('exception-frame-damaged', `${hex(frameEnd)}: ${entry.damaged}`);
    const before = this.#limits;
    const failure = this.#enter(registers[RSP] as number, 'interrupted stack', pc);
    if (failure !== undefined) return failure;
    if (this.#limits.low === before.low && (registers[RSP] as number) < frameEnd)
      return this.#fail(
        'cfa-not-rising',
        `the stack that was interrupted lies above its frame at ${hex(frameEnd)}`,
      );
    return undefined;
  }

  /** Goes on in the stack that `address` lies in; `what` it is of the code at `pc`. */
  #enter(address: number, what: string, pc: number): WalkResult | undefined {
    const next = this.#input.stackLimits(address);
    if (next === undefined)
      return this.#fail('outside-stack', `${hex(address)} (the ${what} of ${hex(pc)}) is no stack`);
    if (this.#input.nestedStacks !== undefined && next.low !== this.#limits.low) {
      if (this.#visited.includes(next.low))
        return this.#fail(
          'outside-stack',
          `${hex(address)} (the ${what} of ${hex(pc)}) is a stack walked before`,
        );
      this.#visited.push(next.low);
    }
    this.#limits = next;
    return undefined;
  }
}

/** Of an address plus one, also where its number has lost the one. */
function evenBelow(address: number): number {
  return Math.floor(address / 8) * 8;
}

function canonicalFrameAddress(
  row: UnwindRow,
  registers: Float64Array,
  window: StackWindow,
): number | undefined {
  if (row.cfaRegister >= 0) return (registers[row.cfaRegister] as number) + row.cfaOffset;
  if (row.cfaExpression === undefined) return undefined;
  return evaluateExpression(row.cfaExpression, contextOf(registers, window), undefined);
}

/** `lowest`: the stack pointer's offset from the CFA. */
function readsOwnFrame(row: UnwindRow, lowest: number): boolean {
  return (
    row.cfaRegister >= 0 &&
    !row.isSignalFrame &&
    row.otherRules.length === 0 &&
    row.returnOffset !== undefined &&
    row.returnOffset >= lowest &&
    row.savedOffsets.every((offset) => offset >= lowest)
  );
}

function contextOf(registers: Float64Array, window: StackWindow) {
  return {
    register: (number: number) => known(registers[number]),
    read64: (address: number) => window.read64(address),
  };
}

function known(value: number | undefined): number | undefined {
  return value === undefined || Number.isNaN(value) ? undefined : value;
}

/** Turns the registers into the caller's. Rules are applied to the callee's values, all at once. */
function restoreCaller(
  row: UnwindRow,
  cfa: number,
  registers: Float64Array,
  window: StackWindow,
): WalkReason | undefined {
  let pc: number | undefined;
  if (row.returnOffset !== undefined) {
    pc = window.read64(cfa + row.returnOffset);
    if (pc === undefined) return 'stack-unreadable';
  }
  if (row.otherRules.length > 0) {
    const callee = Float64Array.from(registers);
    for (const [register, rule] of row.otherRules) {
      const value = applyRule(rule, cfa, callee, window);
      if (register === row.returnAddressRegister) pc = value;
      else registers[register] = value ?? Number.NaN;
    }
  }
  const { savedRegisters, savedOffsets } = row;
  let hasStackPointer = false;
  for (let i = 0; i < savedRegisters.length; i++) {
    const value = window.read64(cfa + (savedOffsets[i] as number));
    if (value === undefined) return 'stack-unreadable';
    if (savedRegisters[i] === RSP) hasStackPointer = true;
    registers[savedRegisters[i] as number] = value;
  }
  if (pc === undefined || Number.isNaN(pc)) return 'register-unknown';
  registers[PC] = pc;
  // By definition, unless the row says otherwise (signal frames do).
  if (!hasStackPointer && !row.otherRules.some(([register]) => register === RSP)) registers[RSP] = cfa;
  return known(registers[RSP]) === undefined ? 'register-unknown' : undefined;
}

function applyRule(
  rule: RegisterRule,
  cfa: number,
  callee: Float64Array,
  window: StackWindow,
): number | undefined {
  switch (rule.kind) {
    case 'undefined':
      return undefined;
    case 'same':
      return undefined;
    case 'offset':
      return window.read64(cfa + rule.offset);
    case 'valOffset':
      return cfa + rule.offset;
    case 'register':
      return known(callee[rule.register]);
    case 'expression': {
      const address = evaluateExpression(rule.expression, contextOf(callee, window), cfa);
      return address === undefined ? undefined : window.read64(address);
    }
    case 'valExpression':
      return evaluateExpression(rule.expression, contextOf(callee, window), cfa);
  }
}

/** The first frame, counted from 0 at the innermost, whose code lies in one of the ranges; -1 for none. */
export function findFrameIn(
  frames: readonly Frame[],
  ranges: readonly { readonly address: number; readonly sizeBytes: number }[],
): number {
  return frames.findIndex((frame) =>
    ranges.some(({ address, sizeBytes }) => {
      const end = address + sizeBytes;
      // Where displaced code runs, both what it stands for and where it lies count.
      return (frame.lookup >= address && frame.lookup < end) || (frame.pc > address && frame.pc < end);
    }),
  );
}
