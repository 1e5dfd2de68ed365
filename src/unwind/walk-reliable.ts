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
  /** The stacks of a kernel: exception frames lie on them, and they lead from one to the next. */
  readonly nestedStacks?: NestedStacks;
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
  | 'too-deep';

export type WalkResult =
  | { readonly reliable: true; readonly frames: readonly Frame[] }
  | {
      readonly reliable: false;
      readonly frames: readonly Frame[];
      readonly reason: { readonly code: WalkReason; readonly detail: string };
    };

const RSP = 7;
const PC = 16;
const DEFAULT_MAX_FRAMES = 200_000;

/**
 * Walks the stack of a stopped task down to its true bottom, every frame justified, or says at which frame and why it
 * could not. There is no guess on this path.
 */
export function walkReliable(input: WalkInput): WalkResult {
  const { registers, modules } = input;
  const frames: Frame[] = [];
  const window = new StackWindow(input.readMemory);
  const maxFrames = input.maxFrames ?? DEFAULT_MAX_FRAMES;
  const fail = (code: WalkReason, detail: string): WalkResult => ({
    reliable: false,
    frames,
    reason: { code, detail },
  });

  const { nestedStacks } = input;
  const start = input.stackLimits(registers[RSP] as number);
  if (start === undefined) return fail('outside-stack', `${hex(registers[RSP] as number)} is no stack`);
  let limits: StackLimits = start;
  window.load(registers[RSP] as number, limits.high);
  const visited = [limits.low];
  let by: Frame['by'] = input.startsAtReturnAddress === true ? 'call' : 'stopped';
  for (;;) {
    const pc = registers[PC] as number;
    const stackPointer = registers[RSP] as number;
    const interrupted = by !== 'call';
    const info = modules.frameInfo(pc, interrupted);
    if (!info.known) return fail(info.code, `${hex(pc)} (frame ${frames.length}): ${info.detail}`);
    const lookup = info.isDisplaced
      ? lookupAddress(info.original, interrupted)
      : lookupAddress(pc, interrupted);
    frames.push({ pc, lookup, stackPointer, module: info.module, by, isDisplaced: info.isDisplaced });
    const { row } = info;
    if (row.isOutermost) return { reliable: true, frames };
    if (frames.length >= maxFrames) return fail('too-deep', `more than ${maxFrames} frames`);

    const cfa = canonicalFrameAddress(row, registers, window);
    if (cfa === undefined) return fail('cfa-unknown', `the frame of ${hex(pc)} can't be computed`);
    const enter = (address: number, what: string): WalkResult | undefined => {
      const next = input.stackLimits(address);
      if (next === undefined)
        return fail('outside-stack', `${hex(address)} (the ${what} of ${hex(pc)}) is no stack`);
      if (nestedStacks !== undefined && next.low !== limits.low) {
        if (visited.includes(next.low))
          return fail(
            'outside-stack',
            `${hex(address)} (the ${what} of ${hex(pc)}) is a stack walked before`,
          );
        visited.push(next.low);
      }
      limits = next;
      return undefined;
    };
    if (row.isSignalFrame && nestedStacks === undefined) {
      // The handler may run on an alternate stack: the interrupted one lies wherever its saved registers say.
      const failure = enter(cfa, 'interrupted stack');
      if (failure !== undefined) return failure;
    } else {
      // A kernel function that calls on another stack finds its own through a word saved there.
      const isElsewhere = cfa <= limits.low || cfa > limits.high;
      const failure =
        nestedStacks !== undefined && row.cfaExpression !== undefined && isElsewhere
          ? enter(cfa, 'calling stack')
          : undefined;
      if (failure !== undefined) return failure;
      if (cfa <= stackPointer && stackPointer >= limits.low && stackPointer <= limits.high)
        return fail('cfa-not-rising', `${hex(cfa)} of ${hex(pc)} is not above ${hex(stackPointer)}`);
      if (cfa > limits.high || (cfa & 7) !== 0) {
        return fail(
          'outside-stack',
          `${hex(cfa)} of ${hex(pc)} is not in the stack that ends at ${hex(limits.high)}`,
        );
      }
    }
    const problem = restoreCaller(row, cfa, registers, window);
    if (problem !== undefined)
      return fail(problem, `the caller of ${hex(pc)} can't be read from its frame at ${hex(cfa)}`);
    if (nestedStacks !== undefined && row.savedRegisters.includes(RSP)) {
      const entry = nestedStacks.entryOf(registers, cfa);
      if (entry === 'user') return { reliable: true, frames };
      if (entry !== 'kernel') return fail('exception-frame-damaged', `${hex(cfa)}: ${entry.damaged}`);
      const before = limits;
      const failure = enter(registers[RSP] as number, 'interrupted stack');
      if (failure !== undefined) return failure;
      if (limits.low === before.low && (registers[RSP] as number) < cfa)
        return fail('cfa-not-rising', `the stack that was interrupted lies above its frame at ${hex(cfa)}`);
    }
    if (row.isSignalFrame) window.load(registers[RSP] as number, limits.high);
    by = row.isSignalFrame ? 'signal' : 'call';
  }
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
