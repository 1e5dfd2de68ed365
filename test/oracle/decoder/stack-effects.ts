import {
  Code,
  type Instruction,
  InstructionInfoFactory,
  Mnemonic,
  OpAccess,
  OpKind,
  Register,
  RegisterExt,
  RepPrefixKind,
} from 'iced-x86';
import type { Instruction as Ours, StackOp } from '../../../src/arch/instruction.js';
import { DWARF_OF_HARDWARE } from '../../../src/arch/x86-64/registers.js';

/** What iced-x86 says of an instruction's effect on registers and the stack, compared with our stack operations. */

const factory = new InstructionInfoFactory();
const [RBX, RBP, RSP] = [3, 6, 7];
/** DWARF numbers of the registers whose writes an unwinder must know: rsp and what a callee preserves. */
const TRACKED = new Set([RSP, RBP, RBX, 12, 13, 14, 15]);
const WRITES = new Set([OpAccess.Write, OpAccess.ReadWrite, OpAccess.CondWrite, OpAccess.ReadCondWrite]);

/** DWARF number of a general register of any width, -1 for another register. */
function dwarfOf(register: Register): number {
  if (register === Register.None || !RegisterExt.isGPR(register)) return -1;
  return DWARF_OF_HARDWARE[RegisterExt.number(RegisterExt.fullRegister(register))] as number;
}

const writtenByShape = new Map<string, readonly number[]>();

/** The tracked registers that iced says are written. They depend on the code and the registers alone, so are kept. */
function writtenPerIced(iced: Instruction): readonly number[] {
  const { code, op0Register, op1Register, op2Register, memoryBase, memoryIndex } = iced;
  const rep = iced.hasRepPrefix ? RepPrefixKind.Repe : iced.hasRepnePrefix ? RepPrefixKind.Repne : 0;
  const key = `${code} ${op0Register} ${op1Register} ${op2Register} ${memoryBase} ${memoryIndex} ${rep}`;
  let written = writtenByShape.get(key);
  if (written === undefined) {
    const info = factory.info(iced);
    const found = new Set<number>();
    for (const used of info.usedRegisters()) {
      const register = dwarfOf(used.register);
      if (WRITES.has(used.access) && TRACKED.has(register)) found.add(register);
      used.free();
    }
    info.free();
    written = [...found].sort((a, b) => a - b);
    writtenByShape.set(key, written);
  }
  return written;
}

function writtenPerUs(ops: readonly StackOp[]): readonly number[] {
  const found = new Set<number>();
  for (const op of ops) {
    switch (op.kind) {
      case 'push':
      case 'pushOther':
      case 'popOther':
      case 'callPush':
      case 'returnPop':
        found.add(RSP);
        break;
      case 'pop':
        found.add(RSP).add(op.register);
        break;
      case 'add':
        found.add(op.destination);
        break;
      case 'and':
      case 'load':
      case 'clobber':
        found.add(op.register);
        break;
      case 'leave':
      case 'enter':
        found.add(RSP).add(RBP);
        break;
      case 'store':
        break;
    }
  }
  return [...found].filter((register) => TRACKED.has(register)).sort((a, b) => a - b);
}

/** The operations that iced's operands amount to, for the instructions that have one of their own; else undefined. */
function opsPerIced(iced: Instruction): readonly StackOp[] | undefined {
  const { mnemonic } = iced;
  const register0 = iced.op0Kind === OpKind.Register ? dwarfOf(iced.op0Register) : -1;
  const register1 = iced.op1Kind === OpKind.Register ? dwarfOf(iced.op1Register) : -1;
  const concerns = (register: number) => register === RSP || register === RBP;
  switch (mnemonic) {
    case Mnemonic.Push:
      if (iced.op0Kind === OpKind.Register && register0 >= 0)
        return [{ kind: 'push', register: register0, sizeBytes: -iced.stackPointerIncrement }];
      return undefined;
    case Mnemonic.Pop:
      if (iced.op0Kind === OpKind.Register && register0 >= 0)
        return [{ kind: 'pop', register: register0, sizeBytes: iced.stackPointerIncrement }];
      return undefined;
    case Mnemonic.Leave:
      return iced.code === Code.Leaveq ? [{ kind: 'leave' }] : undefined;
    case Mnemonic.Enter:
      if (iced.code !== Code.Enterq_imm16_imm8) return undefined;
      return [{ kind: 'enter', sizeBytes: iced.immediate16, nesting: iced.immediate8_2nd & 31 }];
    case Mnemonic.Ret:
      return [{ kind: 'returnPop', extraBytes: iced.op0Kind === OpKind.Immediate16 ? iced.immediate16 : 0 }];
    case Mnemonic.Add:
    case Mnemonic.Sub:
    case Mnemonic.And: {
      const isWide = register0 >= 0 && RegisterExt.isGPR64(iced.op0Register);
      const isImmediate = [OpKind.Immediate8to64, OpKind.Immediate32to64].includes(iced.op1Kind);
      if (!isWide || !concerns(register0) || !isImmediate) return undefined;
      const value = Number(BigInt.asIntN(64, iced.immediate(1)));
      if (mnemonic === Mnemonic.And) return [{ kind: 'and', register: register0, mask: value }];
      const offset = mnemonic === Mnemonic.Add ? value : 0 - value;
      return [{ kind: 'add', destination: register0, source: register0, offset }];
    }
    case Mnemonic.Lea: {
      const base = plainBase(iced);
      if (base < 0 || !RegisterExt.isGPR64(iced.op0Register)) return undefined;
      if (!concerns(register0) && base !== RSP) return undefined;
      return [{ kind: 'add', destination: register0, source: base, offset: displacement(iced) }];
    }
    case Mnemonic.Mov: {
      if (register0 >= 0 && register1 >= 0) {
        if (!RegisterExt.isGPR64(iced.op0Register) || !(concerns(register0) || register1 === RSP))
          return undefined;
        return [{ kind: 'add', destination: register0, source: register1, offset: 0 }];
      }
      const base = plainBase(iced);
      if (base < 0) return undefined;
      if (register1 >= 0 && RegisterExt.isGPR64(iced.op1Register))
        return [{ kind: 'store', register: register1, base, offset: displacement(iced) }];
      if (register0 >= 0 && RegisterExt.isGPR64(iced.op0Register))
        return [{ kind: 'load', register: register0, base, offset: displacement(iced) }];
      return undefined;
    }
    default:
      return undefined;
  }
}

/** The base of a memory operand that is `[base + displacement]` alone, of 64-bit addresses; -1 otherwise. */
function plainBase(iced: Instruction): number {
  const hasMemory = iced.op0Kind === OpKind.Memory || iced.op1Kind === OpKind.Memory;
  // In 64-bit mode the other segment prefixes mean nothing.
  const hasSegment = iced.segmentPrefix === Register.FS || iced.segmentPrefix === Register.GS;
  if (!hasMemory || iced.memoryIndex !== Register.None || hasSegment) return -1;
  return RegisterExt.isGPR64(iced.memoryBase) ? dwarfOf(iced.memoryBase) : -1;
}

function displacement(iced: Instruction): number {
  return Number(BigInt.asIntN(64, iced.memoryDisplacement));
}

/** How our stack operations differ from what iced says; undefined when they do not. */
export function stackDifference(iced: Instruction, ours: Ours): string | undefined {
  // rsm loads every register from memory, which iced does not list.
  if (iced.code === Code.Rsm) return undefined;
  const [a, b] = [writtenPerIced(iced), writtenPerUs(ours.stackOps)];
  if (a.length !== b.length || a.some((register, i) => b[i] !== register)) {
    return `${Code[iced.code]}: registers written: iced ${a.join()}, we ${b.join()}`;
  }
  const expected = opsPerIced(iced);
  const own = ours.stackOps;
  if (expected === undefined) {
    // What iced's operands do not amount to must not be claimed by us either.
    const claimed = own.find((op) =>
      ['add', 'and', 'store', 'load', 'leave', 'enter', 'push', 'pop'].includes(op.kind),
    );
    return claimed === undefined ? undefined : `${Code[iced.code]}: only we see ${claimed.kind}`;
  }
  const [wanted] = expected;
  return own.length === 1 && sameOp(own[0] as StackOp, wanted as StackOp)
    ? undefined
    : `${Code[iced.code]}: iced ${JSON.stringify(expected)}, we ${JSON.stringify(own)}`;
}

function sameOp(a: StackOp, b: StackOp): boolean {
  const [x, y] = [Object.entries(a), new Map(Object.entries(b))];
  return x.length === y.size && x.every(([key, value]) => y.get(key) === value);
}
