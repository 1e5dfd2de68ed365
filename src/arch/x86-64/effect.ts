import type { StackOp } from '../instruction.js';
import { OpCode } from '../instruction-table.js';
import { HIGH_MASKS, LOW_MASKS } from './masks.data.js';
import {
  displacement,
  dwarfOf,
  immediate,
  immediateWord,
  isRegisterForm,
  plainBase,
  regOperand,
  rmOperand,
} from './operands.js';
import { bitOf, bitsOf, registerWrites } from './register-writes.js';
import { CALLEE_SAVED, DW_RBP, DW_RSP } from './registers.js';
import { Encoding, type Scan } from './scanner.js';

const HARDWARE_RSP = 4;
const HARDWARE_RBP = 5;

/** What `pushOther` and `popOther` move. */
const Other = { immediate: 0, memory: 1, flags: 2, segment: 3 } as const;
const PUSH_SOURCES = ['immediate', 'memory', 'flags', 'segment'] as const;
const POP_TARGETS = ['memory', 'memory', 'flags', 'segment'] as const;

/** What one instruction does to registers and stack; one instance, overwritten by each {@link findEffect}. */
export class Effect {
  /** {@link OpCode} */
  op: number = OpCode.none;
  /** DWARF numbers, see {@link OpCode}. */
  a = 0;
  b = 0;
  value = 0;
  /** Registers overwritten otherwise, by hardware number. */
  writes = 0;
  /** Of pushOther and popOther. */
  other = 0;
}

export const effect = new Effect();

/** Fills {@link effect} from what was scanned. */
export function findEffect(scan: Scan): void {
  effect.op = OpCode.none;
  effect.writes = 0;
  if (scan.encoding !== Encoding.legacy || scan.map > 1) effect.writes = registerWrites(scan);
  else if (scan.map === 0) oneByteEffect(scan);
  else twoByteEffect(scan);
}

function set(op: number, a: number, b: number, value: number): void {
  effect.op = op;
  effect.a = a;
  effect.b = b;
  effect.value = value;
}

/** Pushes and pops are 64 bits wide, or 16 with 66h: there is no 32-bit form (SDM volume 1, 6.2.2). */
function isWordSized(scan: Scan): boolean {
  return scan.operandSize && (scan.rex & 8) === 0;
}

function isWide(scan: Scan): boolean {
  return (scan.rex & 8) !== 0;
}

function register(scan: Scan, op: number, hardware: number): void {
  set(op, dwarfOf(hardware), 0, isWordSized(scan) ? 2 : 8);
}

function other(scan: Scan, op: number, what: number): void {
  set(op, 0, 0, isWordSized(scan) ? 2 : 8);
  effect.other = what;
}

function oneByteEffect(scan: Scan): void {
  const { opcode } = scan;
  if ((opcode & 0xf0) === 0x50) {
    register(scan, opcode < 0x58 ? OpCode.push : OpCode.pop, (opcode & 7) | ((scan.rex & 1) << 3));
    return;
  }
  switch (opcode) {
    case 0x68:
    case 0x6a:
      other(scan, OpCode.pushOther, Other.immediate);
      return;
    case 0x81:
    case 0x83:
      arithmetic(scan);
      return;
    case 0x89:
      if (isRegisterForm(scan)) move(scan, rmOperand(scan), regOperand(scan));
      else store(scan);
      return;
    case 0x8b:
      if (isRegisterForm(scan)) move(scan, regOperand(scan), rmOperand(scan));
      else load(scan);
      return;
    case 0x8d:
      loadAddress(scan);
      return;
    case 0x8f:
      if (isRegisterForm(scan)) register(scan, OpCode.pop, rmOperand(scan));
      else other(scan, OpCode.popOther, Other.memory);
      return;
    case 0x9c:
      other(scan, OpCode.pushOther, Other.flags);
      return;
    case 0x9d:
      other(scan, OpCode.popOther, Other.flags);
      return;
    case 0xc2:
      set(OpCode.returnPop, 0, 0, immediateWord(scan));
      return;
    case 0xc3:
      set(OpCode.returnPop, 0, 0, 0);
      return;
    case 0xc8:
      if (isWordSized(scan)) effect.writes = bitsOf(HARDWARE_RSP, HARDWARE_RBP);
      // The nesting level counts modulo 32.
      else {
        const nesting = (scan.bytes[scan.immediateAt + 2] as number) & 31;
        set(OpCode.enter, 0, 0, immediateWord(scan) + nesting * 0x10000);
      }
      return;
    case 0xc9:
      if (isWordSized(scan)) effect.writes = bitsOf(HARDWARE_RSP, HARDWARE_RBP);
      else set(OpCode.leave, 0, 0, 0);
      return;
    case 0xca:
      set(OpCode.returnPop, 0, 0, farPointerBytes(scan) - 8 + immediateWord(scan));
      return;
    case 0xcb:
      set(OpCode.returnPop, 0, 0, farPointerBytes(scan) - 8);
      return;
    case 0xcf:
      // rip, cs, rflags, rsp, ss of the operand size each.
      set(OpCode.returnPop, 0, 0, (farPointerBytes(scan) / 2) * 5 - 8);
      return;
    case 0xe8:
      set(OpCode.callPush, 0, 0, 0);
      return;
    case 0xff:
      groupFive(scan);
      return;
    default:
      effect.writes = registerWrites(scan);
  }
}

function groupFive(scan: Scan): void {
  switch ((scan.modrm >> 3) & 7) {
    case 2:
      set(OpCode.callPush, 0, 0, 0);
      return;
    case 3:
      if (farPointerBytes(scan) === 8) set(OpCode.callPush, 0, 0, 0);
      else effect.writes = bitOf(HARDWARE_RSP);
      return;
    case 6:
      if (isRegisterForm(scan)) register(scan, OpCode.push, rmOperand(scan));
      else other(scan, OpCode.pushOther, Other.memory);
      return;
    default:
      effect.writes = registerWrites(scan);
  }
}

/** Instruction pointer and segment that a far call pushes: of the operand size each, which is 32 bits by default. */
function farPointerBytes(scan: Scan): number {
  return isWide(scan) ? 16 : scan.operandSize ? 4 : 8;
}

function twoByteEffect(scan: Scan): void {
  switch (scan.opcode) {
    case 0xa0:
    case 0xa8:
      other(scan, OpCode.pushOther, Other.segment);
      return;
    case 0xa1:
    case 0xa9:
      other(scan, OpCode.popOther, Other.segment);
      return;
    case 0x01: // uiret, erets, eretu
      effect.writes =
        (scan.modrm === 0xec && scan.repeat === 0xf3) || (scan.modrm === 0xca && scan.repeat !== 0)
          ? bitOf(HARDWARE_RSP)
          : registerWrites(scan);
      return;
    case 0x34: // sysenter
    case 0x35: // sysexit
    case 0xaa: // rsm
      effect.writes = bitOf(HARDWARE_RSP);
      return;
    default:
      effect.writes = registerWrites(scan);
  }
}

/** add, sub and `and` of an immediate to a register: `and` of rsp and rbp only. */
function arithmetic(scan: Scan): void {
  if (!isRegisterForm(scan) || !isWide(scan)) {
    effect.writes = registerWrites(scan);
    return;
  }
  const hardware = rmOperand(scan);
  const dwarf = dwarfOf(hardware);
  switch ((scan.modrm >> 3) & 7) {
    case 0:
      set(OpCode.add, dwarf, dwarf, immediate(scan));
      return;
    case 4:
      set(OpCode.and, dwarf, dwarf, immediate(scan));
      return;
    case 5:
      set(OpCode.add, dwarf, dwarf, 0 - immediate(scan));
      return;
    default:
      effect.writes = registerWrites(scan);
  }
}

function move(scan: Scan, destination: number, source: number): void {
  if (isWide(scan)) set(OpCode.add, dwarfOf(destination), dwarfOf(source), 0);
  else effect.writes = bitOf(destination);
}

function store(scan: Scan): void {
  const base = plainBase(scan);
  if (isWide(scan) && base >= 0) {
    set(OpCode.store, dwarfOf(regOperand(scan)), dwarfOf(base), displacement(scan));
  }
}

function load(scan: Scan): void {
  const base = plainBase(scan);
  if (isWide(scan) && base >= 0) {
    set(OpCode.load, dwarfOf(regOperand(scan)), dwarfOf(base), displacement(scan));
  } else effect.writes = bitOf(regOperand(scan));
}

function loadAddress(scan: Scan): void {
  const base = plainBase(scan);
  if (isWide(scan) && base >= 0) {
    set(OpCode.add, dwarfOf(regOperand(scan)), dwarfOf(base), displacement(scan));
  } else effect.writes = bitOf(regOperand(scan));
}

/** The mask of {@link Effect.writes} by DWARF number. */
export function dwarfMask(writes: number): number {
  return (LOW_MASKS[writes & 0xff] as number) | (HIGH_MASKS[writes >> 8] as number);
}

const isTracked = (dwarf: number) => dwarf === DW_RSP || CALLEE_SAVED.includes(dwarf);

/** {@link effect} as objects: stack operations, and what overwrites the registers that somebody keeps a frame in. */
export function effectToOps(): readonly StackOp[] {
  const op = effectToOp();
  const ops: StackOp[] = op === undefined ? [] : [op];
  const mask = dwarfMask(effect.writes);
  for (let dwarf = 0; dwarf < 16; dwarf++) {
    if ((mask >> dwarf) & 1 && isTracked(dwarf)) ops.push({ kind: 'clobber', register: dwarf });
  }
  return ops;
}

function effectToOp(): StackOp | undefined {
  const { op, a, b, value } = effect;
  switch (op) {
    case OpCode.push:
      return { kind: 'push', register: a, sizeBytes: value };
    case OpCode.pop:
      return { kind: 'pop', register: a, sizeBytes: value };
    case OpCode.pushOther:
      return {
        kind: 'pushOther',
        sizeBytes: value,
        source: PUSH_SOURCES[effect.other] as (typeof PUSH_SOURCES)[number],
      };
    case OpCode.popOther:
      return {
        kind: 'popOther',
        sizeBytes: value,
        target: POP_TARGETS[effect.other] as (typeof POP_TARGETS)[number],
      };
    case OpCode.add:
      if (a === DW_RSP || a === DW_RBP || b === DW_RSP) {
        return { kind: 'add', destination: a, source: b, offset: value };
      }
      return isTracked(a) ? { kind: 'clobber', register: a } : undefined;
    case OpCode.and:
      if (a === DW_RSP || a === DW_RBP) return { kind: 'and', register: a, mask: value };
      return isTracked(a) ? { kind: 'clobber', register: a } : undefined;
    case OpCode.store:
      return { kind: 'store', register: a, base: b, offset: value };
    case OpCode.load:
      return { kind: 'load', register: a, base: b, offset: value };
    case OpCode.leave:
      return { kind: 'leave' };
    case OpCode.enter:
      return { kind: 'enter', sizeBytes: value & 0xffff, nesting: value >> 16 };
    case OpCode.callPush:
      return { kind: 'callPush' };
    case OpCode.returnPop:
      return { kind: 'returnPop', extraBytes: value };
    default:
      return undefined;
  }
}
