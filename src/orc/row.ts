import { ByteWriter } from '../base/byte-writer.js';
import type { CfaRule, CfiRow, RegisterRule } from '../cfi/row.js';
import {
  BP_REG_SHIFT,
  ORC_REG_BP,
  ORC_REG_BP_INDIRECT,
  ORC_REG_DI,
  ORC_REG_DX,
  ORC_REG_PREV_SP,
  ORC_REG_R10,
  ORC_REG_R13,
  ORC_REG_SP,
  ORC_REG_SP_INDIRECT,
  ORC_REG_UNDEFINED,
  ORC_TYPE_CALL,
  ORC_TYPE_END_OF_STACK,
  ORC_TYPE_REGS,
  ORC_TYPE_REGS_PARTIAL,
  type OrcFormat,
  SIGNAL_BIT,
  SP_REG_MASK,
  TYPE_MASK,
  TYPE_SHIFT,
} from './format.js';

/** What one entry says: a {@link CfiRow} without its place. */
export type OrcRule = Omit<CfiRow, 'start' | 'end'>;

const DW_RBP = 6;
const DW_RSP = 7;
const DW_RA = 16;

/** DWARF numbers of `ORC_REG_…` that hold an address themselves. */
const DWARF_OF_ORC: ReadonlyMap<number, number> = new Map([
  [ORC_REG_DX, 1],
  [ORC_REG_DI, 5],
  [ORC_REG_BP, DW_RBP],
  [ORC_REG_SP, DW_RSP],
  [ORC_REG_R10, 10],
  [ORC_REG_R13, 13],
]);

/** `struct pt_regs` (arch/x86/include/asm/ptrace.h): r15, r14, …, rdi by DWARF number, then orig_ax, ip, cs, flags, sp, ss. */
const PT_REGS_ORDER = [15, 14, 13, 12, DW_RBP, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5];
const PT_REGS_BYTES = 168;
const IRET_FRAME_BYTES = 40;
/** From the end of either frame. */
const FRAME_IP = -40;
const FRAME_SP = -16;

/**
 * A call frame says nothing of these, and they alone can be the base of another row: the kernel's unwinder takes them
 * from saved registers only.
 */
const UNRECOVERED: readonly number[] = [1, 5, 10, 13];

const DW_OP_deref = 0x06;
const DW_OP_breg0 = 0x70;
const DW_OP_consts = 0x11;
const DW_OP_plus = 0x22;

/**
 * Converts one entry (fields in the layout of 6.4). Undefined where the table says that nothing is known.
 * For frames of saved registers the CFA is the address right behind the `pt_regs`, and all registers, the stack pointer
 * too, are saved at offsets from it. Follows `unwind_next_frame()` in arch/x86/kernel/unwind_orc.c.
 * An entry with an unknown register or type also claims nothing.
 */
export function convertOrcEntry(
  spOffset: number,
  bpOffset: number,
  fields: number,
  format: OrcFormat,
): OrcRule | undefined {
  const type = (fields >> TYPE_SHIFT) & TYPE_MASK;
  const signalFrame = (fields & SIGNAL_BIT) !== 0;
  const registers = new Map<number, RegisterRule>();
  if (type === ORC_TYPE_END_OF_STACK) {
    registers.set(DW_RA, { kind: 'undefined' });
    return rule({ kind: 'register', register: DW_RSP, offset: 0 }, registers, false);
  }
  const frameBytes =
    type === ORC_TYPE_CALL
      ? 0
      : type === ORC_TYPE_REGS
        ? PT_REGS_BYTES
        : type === ORC_TYPE_REGS_PARTIAL
          ? IRET_FRAME_BYTES
          : undefined;
  if (frameBytes === undefined) return undefined;
  const cfa = cfaOf(fields & SP_REG_MASK, spOffset, frameBytes, format);
  if (cfa === undefined) return undefined;

  if (type === ORC_TYPE_REGS) {
    PT_REGS_ORDER.forEach((register, i) => {
      registers.set(register, { kind: 'offset', offset: i * 8 - PT_REGS_BYTES });
    });
  } else for (const register of UNRECOVERED) registers.set(register, { kind: 'undefined' });
  if (type === ORC_TYPE_CALL) registers.set(DW_RA, { kind: 'offset', offset: -8 });
  else {
    registers.set(DW_RA, { kind: 'offset', offset: FRAME_IP });
    registers.set(DW_RSP, { kind: 'offset', offset: FRAME_SP });
  }
  switch ((fields >> BP_REG_SHIFT) & 0x0f) {
    case ORC_REG_UNDEFINED:
      break;
    case ORC_REG_PREV_SP:
      // The entry counts from where the frame of registers begins.
      registers.set(DW_RBP, { kind: 'offset', offset: bpOffset - frameBytes });
      break;
    case ORC_REG_BP: {
      const expression = new ByteWriter(8)
        .writeU8(DW_OP_breg0 + DW_RBP)
        .writeSleb128(bpOffset)
        .toBytes();
      registers.set(DW_RBP, { kind: 'expression', expression });
      break;
    }
    default:
      return undefined;
  }
  return rule(cfa, registers, signalFrame);
}

function rule(cfa: CfaRule, registers: ReadonlyMap<number, RegisterRule>, signalFrame: boolean): OrcRule {
  return { cfa, registers, returnAddressRegister: DW_RA, signalFrame, argsSizeBytes: 0 };
}

function cfaOf(
  orcRegister: number,
  offset: number,
  frameBytes: number,
  format: OrcFormat,
): CfaRule | undefined {
  const register = DWARF_OF_ORC.get(orcRegister);
  if (register !== undefined) {
    // For the registers of realigned stacks the unwinder ignores the offset; objtool writes 0.
    const isPlain = register === DW_RSP || register === DW_RBP;
    return { kind: 'register', register, offset: (isPlain ? offset : 0) + frameBytes };
  }
  switch (orcRegister) {
    case ORC_REG_BP_INDIRECT:
      return indirect(DW_RBP, offset, frameBytes);
    case ORC_REG_SP_INDIRECT:
      return format === '4.14' || format === '4.18'
        ? indirect(DW_RSP, offset, frameBytes)
        : indirect(DW_RSP, 0, offset + frameBytes);
    default:
      return undefined;
  }
}

/** `*(register + before) + behind` */
function indirect(register: number, before: number, behind: number): CfaRule {
  const out = new ByteWriter(16)
    .writeU8(DW_OP_breg0 + register)
    .writeSleb128(before)
    .writeU8(DW_OP_deref);
  if (behind !== 0) out.writeU8(DW_OP_consts).writeSleb128(behind).writeU8(DW_OP_plus);
  return { kind: 'expression', expression: out.toBytes() };
}
