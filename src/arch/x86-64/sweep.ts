import {
  FlowCode,
  type InstructionSweeper,
  InstructionTable,
  NO_TARGET,
  OpCode,
} from '../instruction-table.js';
import { dwarfMask, effect, findEffect } from './effect.js';
import { flowOf } from './flow.js';
import { ONE_BYTE, TWO_BYTE } from './opcodes.data.js';
import { HAS_MODRM, IMMEDIATE_MASK, Immediate } from './opcodes.js';
import { hasRelativeTarget, immediate } from './operands.js';
import { bitOf } from './register-writes.js';
import { DWARF_OF_HARDWARE } from './registers.js';
import { MAX_INSTRUCTION_BYTES, scan, scanInstruction } from './scanner.js';

/**
 * The sweep takes the frequent instructions apart itself and leaves the rest, and all that have a prefix but REX and GS, to
 * `scanInstruction` and `findEffect`, which say the same of every instruction (`sweep.test.ts` holds one against the other).
 */
const Fast = {
  slow: 0,
  /** Writes no general register. */
  none: 1,
  push: 2,
  pop: 3,
  /** Writes the register in ModRM.reg. */
  reg: 4,
  /** Writes the operand in ModRM.rm, if it is a register. */
  rm: 5,
  moveToRm: 6,
  moveToReg: 7,
  loadAddress: 8,
  /** 81h and 83h: add, or, adc, sbb, and, sub, xor, cmp. */
  arithmetic: 9,
  call: 10,
  jump: 11,
  branch: 12,
  return: 13,
  leave: 14,
  /** Writes the register in the opcode; not with REX.W, which makes its immediate longer. */
  opcodeReg: 15,
  /** FFh: inc, dec, call, jmp, push. */
  groupFive: 16,
  breakpoint: 17,
  /** Writes rax; 99h rdx. */
  accumulator: 18,
  pushImmediate: 19,
  /** F6h and F7h: test, not, neg, mul, imul, div, idiv. */
  groupThree: 20,
  /** Writes the byte operand in ModRM.rm, if it is a register. */
  rmByte: 21,
  /** Writes the byte register in ModRM.reg. */
  regByte: 22,
  opcodeByte: 23,
  /** 80h: arithmetic of bytes. */
  byteArithmetic: 24,
  deadEnd: 25,
} as const;

const ranges = (classes: readonly (readonly [number, string])[]): Uint8Array => {
  const table = new Uint8Array(256);
  for (const [value, text] of classes) {
    for (const part of text.split(' ')) {
      const [first = '', last = first] = part.split('-');
      table.fill(value, Number.parseInt(first, 16), Number.parseInt(last, 16) + 1);
    }
  }
  return table;
};

const ONE_BYTE_CLASS = ranges([
  [Fast.none, '38-3b 84 85 c6 a8 a9 3c 3d f5 f8 f9 fc fd 90'],
  [Fast.rm, '01 09 11 19 21 29 31 c1 d1 d3 c7'],
  [Fast.reg, '03 0b 13 1b 23 2b 33 63 69 6b'],
  [Fast.push, '50-57'],
  [Fast.pop, '58-5f'],
  [Fast.moveToRm, '89'],
  [Fast.moveToReg, '8b'],
  [Fast.loadAddress, '8d'],
  [Fast.arithmetic, '81 83'],
  [Fast.call, 'e8'],
  [Fast.jump, 'e9 eb'],
  [Fast.branch, '70-7f'],
  [Fast.return, 'c3'],
  [Fast.leave, 'c9'],
  [Fast.opcodeReg, 'b8-bf'],
  [Fast.groupFive, 'ff'],
  [Fast.breakpoint, 'cc'],
  [Fast.accumulator, '04 05 0c 0d 14 15 1c 1d 24 25 2c 2d 34 35 98 99'],
  [Fast.pushImmediate, '68 6a'],
  [Fast.groupThree, 'f6 f7'],
  [Fast.rmByte, '00 08 10 18 20 28 30 88'],
  [Fast.regByte, '02 0a 12 1a 22 2a 32 8a'],
  [Fast.opcodeByte, 'b0-b7'],
  [Fast.byteArithmetic, '80'],
]);

const TWO_BYTE_CLASS = ranges([
  [Fast.none, '0d 10 11 14 15 18-1d 1f 28 29 51 52 54-59 5c-5f a3'],
  [Fast.reg, '40-4f af b6 b7 be bf bc bd'],
  [Fast.branch, '80-8f'],
  [Fast.rmByte, '90-9f'],
  [Fast.deadEnd, '0b'],
]);

/** Length of opcode and immediate for the instructions of the classes above; ModRM is counted apart. */
const lengthOf = (map: Uint8Array, escapeBytes: number) =>
  map.map((cell) => {
    const size = new Map<number, number>([
      [Immediate.byte, 1],
      [Immediate.relative8, 1],
      [Immediate.operand, 4],
      [Immediate.full, 4],
      [Immediate.relative32, 4],
    ]).get(cell & IMMEDIATE_MASK);
    return 1 + escapeBytes + (size ?? 0);
  });
const ONE_BYTE_LENGTH = lengthOf(ONE_BYTE, 0);
const TWO_BYTE_LENGTH = lengthOf(TWO_BYTE, 1);
const hasModrm = (map: Uint8Array) => map.map((cell) => (cell & HAS_MODRM ? 1 : 0));
const ONE_BYTE_MODRM = hasModrm(ONE_BYTE);
const TWO_BYTE_MODRM = hasModrm(TWO_BYTE);

/** Per ModRM byte: 1 plus the displacement's size; 16 more where a SIB byte follows. */
const WITH_SIB = 16;
const MODRM_BYTES = Uint8Array.from({ length: 256 }, (_, modrm) => {
  const mod = modrm >> 6;
  const rm = modrm & 7;
  if (mod === 3) return 1;
  const displacementBytes = mod === 1 ? 1 : mod === 2 || rm === 5 ? 4 : 0;
  return 1 + displacementBytes + (rm === 4 ? WITH_SIB : 0);
});

const FLOW_CODE_OF = FlowCode as Readonly<Record<string, number>>;
const DWARF = Uint8Array.from(DWARF_OF_HARDWARE);
const MASK = Uint16Array.from({ length: 16 }, (_, hardware) => dwarfMask(bitOf(hardware)));

const RAX = MASK[0] as number;
const RDX = MASK[2] as number;

/** Behind the longest instruction nothing is read that lies outside. */
const MARGIN_BYTES = MAX_INSTRUCTION_BYTES + 17;
/** Instructions take 4 bytes on average; the table is made larger when they are shorter. */
const BYTES_PER_INSTRUCTION = 3;

let isTrained = false;
let sweptBytes = 0;

/**
 * Sweeps one instruction of every kind. The just-in-time compiler makes code for the ways it has seen and throws it away
 * when another turns up; rare instructions otherwise cost a large sweep more in compilations than the sweep itself takes.
 */
function train(): void {
  isTrained = true;
  const table = new InstructionTable(64);
  const bytes = new Uint8Array(64);
  for (const prefixes of TRAINING_PREFIXES) {
    for (let opcode = 0; opcode < 512; opcode++) {
      for (const modrm of TRAINING_MODRM) {
        bytes.set(prefixes);
        let at = prefixes.length;
        if (opcode > 255) bytes[at++] = 0x0f;
        bytes[at++] = opcode & 0xff;
        bytes[at++] = modrm | ((opcode & 7) << 3);
        bytes[at] = 0x24;
        // Room for one instruction.
        table.count = table.offsets.length - 1;
        sweepInto(bytes, 0, bytes.length, table);
      }
    }
  }
  for (const vector of [0xc5, 0xc4, 0x62]) {
    for (let opcode = 0; opcode < 256; opcode += 3) {
      bytes.set([vector, vector === 0xc5 ? 0xf8 : 0xe2, 0x7d, opcode, 0xc1, 0xc1]);
      table.count = table.offsets.length - 1;
      sweepInto(bytes, 0, bytes.length, table);
    }
  }
}

const TRAINING_PREFIXES = [[], [0x48], [0x66], [0xf3, 0x45], [0xf2, 0x0f], [0x65]];
/** A register, a memory operand, one with a displacement and an index. */
const TRAINING_MODRM = [0xc1, 0x05, 0x44];
/** Less is done before a compiler takes notice. */
const WORTH_TRAINING_BYTES = 1 << 16;

export const sweeper: InstructionSweeper = {
  sweep(bytes, start, end, into) {
    if (!isTrained) {
      sweptBytes += end - start;
      if (sweptBytes > WORTH_TRAINING_BYTES) train();
    }
    const limit = Math.min(end, bytes.length);
    let at = start;
    while (at < limit) {
      const room = Math.ceil((limit - at) / BYTES_PER_INSTRUCTION) + 16;
      into.reserve(into.count + Math.min(room, 1 << 16));
      const before = at;
      at = sweepInto(bytes, at, limit, into);
      if (at === before) break;
    }
    return at;
  },
};

/** Sweeps until the table is full, the end is reached or bytes are no instruction. */
function sweepInto(bytes: Uint8Array, start: number, end: number, into: InstructionTable): number {
  const { offsets, lengths, flows, targets, ops, operands, values, writes } = into;
  const capacity = offsets.length;
  const fastEnd = end - MARGIN_BYTES;
  let n = into.count;
  let at = start;
  while (at < end && n < capacity) {
    let flow: number = FlowCode.next;
    let target = NO_TARGET;
    let op: number = OpCode.none;
    let operand = 0;
    let value = 0;
    let written = 0;
    let length = 0;
    if (at < fastEnd) {
      let p = at;
      let rex = 0;
      let byte = bytes[p] as number;
      // The kernel's per-CPU variables.
      const hasSegment = byte === 0x65;
      if (hasSegment) byte = bytes[++p] as number;
      if ((byte & 0xf0) === 0x40) {
        rex = byte;
        byte = bytes[++p] as number;
      }
      let kind: number;
      let size: number;
      let modrm = 0;
      let modrmAt = p + 1;
      let withModrm: number;
      if (byte === 0x0f) {
        const second = bytes[p + 1] as number;
        kind = TWO_BYTE_CLASS[second] as number;
        size = TWO_BYTE_LENGTH[second] as number;
        withModrm = TWO_BYTE_MODRM[second] as number;
        modrmAt++;
      } else {
        kind = ONE_BYTE_CLASS[byte] as number;
        size = ONE_BYTE_LENGTH[byte] as number;
        withModrm = ONE_BYTE_MODRM[byte] as number;
      }
      // Position of the displacement, and the base register of `[base + displacement]`, -1 for other operands.
      let displacementAt = 0;
      let displacementSize = 0;
      let base = -1;
      if (withModrm === 1) {
        modrm = bytes[modrmAt] as number;
        const modrmSize = MODRM_BYTES[modrm] as number;
        if (modrmSize < WITH_SIB) {
          size += modrmSize;
          displacementAt = modrmAt + 1;
          displacementSize = modrmSize - 1;
          if (modrm < 0xc0 && (modrm & 0xc7) !== 5) base = (modrm & 7) | ((rex & 1) << 3);
        } else {
          const sib = bytes[modrmAt + 1] as number;
          displacementAt = modrmAt + 2;
          const withoutBase = (sib & 7) === 5 && modrm < 0x40;
          displacementSize = withoutBase ? 4 : modrmSize - WITH_SIB - 1;
          size += 2 + displacementSize;
          if (!withoutBase && (((sib >> 3) & 7) | ((rex & 2) << 2)) === 4)
            base = (sib & 7) | ((rex & 1) << 3);
        }
        if (hasSegment) base = -1;
      }
      length = p - at + size;
      switch (kind) {
        case Fast.none:
          // c6 /1 to /7 are other instructions or none; 41 90 is xchg r8, rax.
          if (byte === 0xc6 && (modrm & 0x38) !== 0) length = 0;
          else if (byte === 0xc6 && modrm >= 0xc0) length = 0;
          else if (byte === 0x90 && (rex & 1) !== 0) length = 0;
          break;
        case Fast.push:
          op = OpCode.push;
          operand = DWARF[(byte & 7) | ((rex & 1) << 3)] as number;
          value = 8;
          break;
        case Fast.pop:
          op = OpCode.pop;
          operand = DWARF[(byte & 7) | ((rex & 1) << 3)] as number;
          value = 8;
          break;
        case Fast.reg:
          written = MASK[((modrm >> 3) & 7) | ((rex & 4) << 1)] as number;
          break;
        case Fast.rm:
          if (byte === 0xc7 && (modrm & 0x38) !== 0) length = 0;
          else if (modrm >= 0xc0) written = MASK[(modrm & 7) | ((rex & 1) << 3)] as number;
          break;
        case Fast.moveToRm:
        case Fast.moveToReg:
        case Fast.loadAddress: {
          const reg = ((modrm >> 3) & 7) | ((rex & 4) << 1);
          if (modrm >= 0xc0) {
            const rm = (modrm & 7) | ((rex & 1) << 3);
            if (kind === Fast.loadAddress) length = 0;
            else if ((rex & 8) === 0) written = MASK[kind === Fast.moveToRm ? rm : reg] as number;
            else {
              op = OpCode.add;
              operand =
                kind === Fast.moveToRm
                  ? (DWARF[rm] as number) | ((DWARF[reg] as number) << 4)
                  : (DWARF[reg] as number) | ((DWARF[rm] as number) << 4);
            }
          } else if (base >= 0 && (rex & 8) !== 0) {
            op = kind === Fast.moveToRm ? OpCode.store : kind === Fast.moveToReg ? OpCode.load : OpCode.add;
            operand = (DWARF[reg] as number) | ((DWARF[base] as number) << 4);
            if (displacementSize === 1) value = ((bytes[displacementAt] as number) << 24) >> 24;
            else if (displacementSize === 4) value = readInt32(bytes, displacementAt);
          } else if (kind !== Fast.moveToRm) written = MASK[reg] as number;
          break;
        }
        case Fast.arithmetic: {
          if (modrm < 0xc0) break;
          const rm = (modrm & 7) | ((rex & 1) << 3);
          const group = modrm & 0x38;
          if ((rex & 8) !== 0 && (group === 0x00 || group === 0x20 || group === 0x28)) {
            op = group === 0x20 ? OpCode.and : OpCode.add;
            operand = (DWARF[rm] as number) * 17;
            value =
              byte === 0x83 ? ((bytes[modrmAt + 1] as number) << 24) >> 24 : readInt32(bytes, modrmAt + 1);
            // A value that can't be negated in 32 bits is left to the slow path.
            if (group === 0x28) {
              if (value === -0x8000_0000) length = 0;
              value = 0 - value;
            }
          } else if (group !== 0x38) written = MASK[rm] as number;
          break;
        }
        case Fast.call:
          flow = FlowCode.call;
          op = OpCode.callPush;
          target = at + length + readInt32(bytes, p + 1);
          break;
        case Fast.jump:
          flow = FlowCode.jump;
          target =
            at + length + (byte === 0xeb ? ((bytes[p + 1] as number) << 24) >> 24 : readInt32(bytes, p + 1));
          break;
        case Fast.branch:
          flow = FlowCode.branch;
          target =
            at + length + (byte === 0x0f ? readInt32(bytes, p + 2) : ((bytes[p + 1] as number) << 24) >> 24);
          break;
        case Fast.return:
          flow = FlowCode.return;
          op = OpCode.returnPop;
          break;
        case Fast.breakpoint:
          flow = FlowCode.breakpoint;
          break;
        case Fast.leave:
          op = OpCode.leave;
          break;
        case Fast.opcodeReg:
          if ((rex & 8) !== 0) length = 0;
          else written = MASK[(byte & 7) | ((rex & 1) << 3)] as number;
          break;
        case Fast.accumulator:
          written = byte === 0x99 ? RDX : RAX;
          break;
        case Fast.pushImmediate:
          op = OpCode.pushOther;
          value = 8;
          break;
        case Fast.rmByte:
          if (modrm >= 0xc0) written = byteMask((modrm & 7) | ((rex & 1) << 3), rex);
          break;
        case Fast.regByte:
          written = byteMask(((modrm >> 3) & 7) | ((rex & 4) << 1), rex);
          break;
        case Fast.opcodeByte:
          written = byteMask((byte & 7) | ((rex & 1) << 3), rex);
          break;
        case Fast.byteArithmetic:
          if (modrm >= 0xc0 && (modrm & 0x38) !== 0x38)
            written = byteMask((modrm & 7) | ((rex & 1) << 3), rex);
          break;
        case Fast.deadEnd:
          flow = FlowCode.deadEnd;
          break;
        case Fast.groupThree: {
          const group = (modrm >> 3) & 7;
          if (group < 2) length += byte === 0xf6 ? 1 : 4;
          else if (group >= 4) written = byte === 0xf6 ? RAX : RAX | RDX;
          else if (modrm >= 0xc0) {
            const rm = (modrm & 7) | ((rex & 1) << 3);
            written = byte === 0xf6 ? byteMask(rm, rex) : (MASK[rm] as number);
          }
          break;
        }
        case Fast.groupFive: {
          const group = (modrm >> 3) & 7;
          if (group < 2) {
            if (modrm >= 0xc0) written = MASK[(modrm & 7) | ((rex & 1) << 3)] as number;
          } else if (group === 2) {
            flow = FlowCode.indirectCall;
            op = OpCode.callPush;
          } else if (group === 4) flow = FlowCode.indirectJump;
          else if (group === 6 && modrm < 0xc0) {
            op = OpCode.pushOther;
            value = 8;
          } else length = 0;
          break;
        }
        default:
          length = 0;
          break;
      }
    }
    if (length === 0) {
      op = OpCode.none;
      operand = 0;
      value = 0;
      written = 0;
      flow = FlowCode.next;
      target = NO_TARGET;
      // Instructions that are prefixed but do nothing of interest are frequent: nops and vector instructions.
      if (!scanInstruction(bytes, at, end)) break;
      length = scan.lengthBytes;
      findEffect(scan);
      flow = FLOW_CODE_OF[flowOf(scan)] as number;
      if (effect.op !== OpCode.none) {
        op = effect.op;
        operand =
          op >= OpCode.leave || op === OpCode.pushOther || op === OpCode.popOther
            ? 0
            : effect.a | (effect.b << 4);
        value = effect.value;
      }
      if (effect.writes !== 0) written = dwarfMask(effect.writes);
      if (hasRelativeTarget(scan)) target = at + length + immediate(scan);
    }
    offsets[n] = at;
    lengths[n] = length;
    flows[n] = flow;
    targets[n] = target;
    ops[n] = op;
    operands[n] = operand;
    values[n] = value;
    writes[n] = written;
    n++;
    at += length;
  }
  into.count = n;
  return at;
}

/** SDM volume 1, table 3-2: without REX, 4 to 7 are the high bytes of the first four registers. */
function byteMask(hardware: number, rex: number): number {
  return MASK[rex === 0 && hardware >= 4 ? hardware - 4 : hardware] as number;
}

function readInt32(bytes: Uint8Array, at: number): number {
  return (
    (bytes[at] as number) |
    ((bytes[at + 1] as number) << 8) |
    ((bytes[at + 2] as number) << 16) |
    ((bytes[at + 3] as number) << 24)
  );
}
