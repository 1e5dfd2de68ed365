import type { TableJump } from '../architecture.js';
import {
  FlowCode,
  firstOf,
  type InstructionTable,
  OpCode,
  opOf,
  secondOf,
  writesOf,
} from '../instruction-table.js';
import { displacement, dwarfOf, immediate, isRegisterForm, regOperand, rmOperand } from './operands.js';
import { DW_RAX, DW_RBP } from './registers.js';
import { scan, scanInstruction } from './scanner.js';

/** Bases are hoisted out of loops, indexes are not; farther back than this many instructions nothing is looked for. */
const MAX_BASE_STEPS = 4000;
const MAX_INDEX_STEPS = 50;

interface Context {
  readonly bytes: Uint8Array;
  readonly table: InstructionTable;
  /** Index of an instruction that control comes from, -1 for none. */
  readonly previous: (i: number) => number;
}

/**
 * The table that an indirect jump reads its target from: `jmp *table(,%i,8)`, `jmp *(%b,%i,8)`, a load of either kind before
 * `jmp *%r`, and `movslq (%b,%i,4),%r; add %b,%r; jmp *%r`, as GCC and LLVM write switches and computed gotos. Registers are
 * traced backward along `previous`. `register`: where the jump goes through, when that is known otherwise (a retpoline's name).
 */
export function findTableJump(
  bytes: Uint8Array,
  table: InstructionTable,
  jump: number,
  previous: (i: number) => number,
  register: number | undefined,
): TableJump | undefined {
  const context: Context = { bytes, table, previous };
  let through = register;
  if (through === undefined) {
    if (!scanAt(context, jump) || scan.opcode !== 0xff || ((scan.modrm >> 3) & 7) !== 4) return undefined;
    if (scan.ripRelative) return slotOf(context, jump);
    if (!isRegisterForm(scan)) return tableOfLoad(context, jump, 8);
    through = dwarfOf(rmOperand(scan));
  }
  const at = findWrite(context, jump, through);
  if (at < 0 || !scanAt(context, at) || scan.map !== 0) return undefined;
  if (scan.opcode === 0x8b && (scan.rex & 8) !== 0 && !isRegisterForm(scan))
    return tableOfLoad(context, at, 8);
  const registers = addedRegisters();
  for (const loaded of registers) {
    const load = findWrite(context, at, loaded);
    if (load < 0 || !scanAt(context, load)) continue;
    if (scan.map === 0 && scan.opcode === 0x98 && (scan.rex & 8) !== 0) {
      // Without optimisation, the index is scaled and the entry extended apart: `mov (%b,%i),%eax; cltq`.
      const other = registers.find((each) => each !== loaded);
      const base = other === undefined ? undefined : baseOf(context, at, other);
      return base && { ...base, entrySizeBytes: 4, isRelative: true, count: undefined };
    }
    // movslq
    if (scan.map !== 0 || scan.opcode !== 0x63 || (scan.rex & 8) === 0 || isRegisterForm(scan)) continue;
    return tableOfLoad(context, load, 4);
  }
  return undefined;
}

/** Of the instruction that was scanned: the two registers of `add %a,%b` or `lea (%a,%b),%c`; none for other instructions. */
export function addedRegisters(): readonly number[] {
  if ((scan.rex & 8) === 0) return [];
  if (scan.opcode === 0x01 || scan.opcode === 0x03)
    return isRegisterForm(scan) ? [dwarfOf(regOperand(scan)), dwarfOf(rmOperand(scan))] : [];
  const isPlain = scan.opcode === 0x8d && scan.sib >= 0 && scan.sib >> 6 === 0 && displacement(scan) === 0;
  if (!isPlain || ((scan.sib & 7) === 5 && scan.modrm < 0x40)) return [];
  const index = ((scan.sib >> 3) & 7) | ((scan.rex & 2) << 2);
  return index === 4 ? [] : [dwarfOf(index), dwarfOf((scan.sib & 7) | ((scan.rex & 1) << 3))];
}

/** Scans instruction `i`; false where it is none. */
export function scanAt({ bytes, table }: Pick<Context, 'bytes' | 'table'>, i: number): boolean {
  const at = table.offsets[i] as number;
  return scanInstruction(bytes, at, at + (table.lengths[i] as number));
}

/** Whether an instruction changes a register, for who looks for what was put there before. */
export function writesRegister(table: InstructionTable, i: number, register: number): boolean {
  const effect = table.effects[i] as number;
  if ((writesOf(effect) >> register) & 1) return true;
  const a = firstOf(effect);
  switch (opOf(effect)) {
    case OpCode.pop:
    case OpCode.load:
    case OpCode.add:
    case OpCode.and:
      return a === register;
    case OpCode.callPush:
      // Whoever reads another register behind a call knows the callee, and that it keeps it (GCC's -fipa-ra).
      return register === DW_RAX;
    case OpCode.leave:
    case OpCode.enter:
      return register === DW_RBP;
    default:
      return false;
  }
}

/** The nearest instruction before `i` that writes a register, -1 for none near enough. */
function findWrite(context: Context, i: number, register: number): number {
  let at = i;
  for (let steps = 0; steps < MAX_BASE_STEPS; steps++) {
    at = context.previous(at);
    if (at < 0) return -1;
    if (writesRegister(context.table, at, register)) return at;
  }
  return -1;
}

/** `jmp *slot(%rip)`: a table of one entry, as linkage tables have. */
function slotOf({ table }: Context, i: number): TableJump {
  const position = table.offsets[i] as number;
  return {
    fieldAt: position + scan.displacementAt - scan.start,
    value: position + scan.lengthBytes + displacement(scan),
    isPcRelative: true,
    entrySizeBytes: 8,
    isRelative: false,
    count: 1,
  };
}

/** The operand of a load or jump: `disp32(,%i,scale)` or `(%b,%i,scale)`. */
function tableOfLoad(context: Context, i: number, entrySizeBytes: 4 | 8): TableJump | undefined {
  if (!scanAt(context, i) || scan.sib < 0 || scan.segment !== 0 || scan.addressSize) return undefined;
  if (1 << (scan.sib >> 6) !== entrySizeBytes) return undefined;
  const indexHardware = ((scan.sib >> 3) & 7) | ((scan.rex & 2) << 2);
  if (indexHardware === 4) return undefined;
  const index = dwarfOf(indexHardware);
  const position = context.table.offsets[i] as number;
  const entries = { entrySizeBytes, isRelative: entrySizeBytes === 4 };
  if ((scan.sib & 7) === 5 && scan.modrm < 0x40) {
    if (entrySizeBytes === 4) return undefined;
    const place = { fieldAt: position + scan.displacementAt - scan.start, value: displacement(scan) };
    return { ...entries, ...place, isPcRelative: false, count: countOf(context, i, index) };
  }
  if (displacement(scan) !== 0) return undefined;
  const base = baseOf(context, i, dwarfOf((scan.sib & 7) | ((scan.rex & 1) << 3)));
  return base && { ...entries, ...base, count: countOf(context, i, index) };
}

/** What a register that holds a table's address was made from: `lea x(%rip)`, `mov $x`, or another such register. */
function baseOf(
  context: Context,
  i: number,
  register: number,
): Pick<TableJump, 'fieldAt' | 'value' | 'isPcRelative'> | undefined {
  let [at, traced] = [i, register];
  for (let copies = 0; copies < 4; copies++) {
    at = findWrite(context, at, traced);
    if (at < 0 || !scanAt(context, at) || scan.map !== 0) return undefined;
    const start = context.table.offsets[at] as number;
    if (scan.opcode === 0x8d && scan.ripRelative) {
      return {
        fieldAt: start + scan.displacementAt - scan.start,
        value: start + scan.lengthBytes + displacement(scan),
        isPcRelative: true,
      };
    }
    const isImmediate = (scan.opcode & 0xf8) === 0xb8 || (scan.opcode === 0xc7 && isRegisterForm(scan));
    if (isImmediate && scan.immediateSize === 4) {
      return {
        fieldAt: start + scan.immediateAt - scan.start,
        value: immediate(scan),
        isPcRelative: false,
      };
    }
    const effect = context.table.effects[at] as number;
    if (opOf(effect) !== OpCode.add || context.table.values[at] !== 0) return undefined;
    traced = secondOf(effect);
  }
  return undefined;
}

/** Condition codes (SDM volume 1, appendix B). */
const [BELOW, NOT_BELOW, NOT_ABOVE, ABOVE] = [2, 3, 6, 7];

/** How many entries the code before lets an index have: by a comparison and its branch, a mask, or the width of its load. */
function countOf(context: Context, i: number, register: number): number | undefined {
  const { table, previous } = context;
  let traced = register;
  let byWidth: number | undefined;
  /** Of the branch that was passed last: its condition, and whether it was taken. */
  let condition = -1;
  let wasTaken = false;
  let after = i;
  for (let steps = 0; steps < MAX_INDEX_STEPS; steps++) {
    const at = previous(after);
    if (at < 0 || !scanAt(context, at)) return byWidth;
    const { opcode, map, rex } = scan;
    if (table.flows[at] === FlowCode.branch) {
      condition =
        (map === 0 && (opcode & 0xf0) === 0x70) || (map === 1 && (opcode & 0xf0) === 0x80) ? opcode & 15 : -1;
      wasTaken = at + 1 !== after;
      after = at;
      continue;
    }
    after = at;
    const compared = comparedRegister();
    if (compared === traced && condition >= 0) {
      const limit =
        immediate(scan) & (scan.immediateSize === 1 && map === 0 && isByteForm(opcode) ? 0xff : -1);
      if (limit >= 0) {
        if (condition === (wasTaken ? NOT_ABOVE : ABOVE)) return limit + 1;
        if (condition === (wasTaken ? BELOW : NOT_BELOW)) return limit;
      }
    }
    if (!writesRegister(table, at, traced)) continue;
    if (
      map === 0 &&
      (opcode === 0x83 || opcode === 0x81) &&
      isRegisterForm(scan) &&
      (scan.modrm & 0x38) === 0x20
    ) {
      const mask = immediate(scan);
      return mask >= 0 ? mask + 1 : byWidth;
    }
    const isMove = map === 0 && (opcode === 0x8b || opcode === 0x63 || opcode === 0x89);
    const isZeroExtension = map === 1 && (opcode === 0xb6 || opcode === 0xb7);
    if (isZeroExtension && opcode === 0xb6) byWidth ??= 256;
    if (!isRegisterForm(scan) || !(isMove || isZeroExtension)) return byWidth;
    // ah, ch, dh, bh
    if (opcode === 0xb6 && rex === 0 && (scan.modrm & 7) >= 4) return byWidth;
    traced = dwarfOf(opcode === 0x89 ? regOperand(scan) : rmOperand(scan));
  }
  return byWidth;
}

function isByteForm(opcode: number): boolean {
  return opcode === 0x80 || opcode === 0x3c;
}

/** The register that `cmp $x` looks at, in any width; -1 for other instructions. */
function comparedRegister(): number {
  const { opcode } = scan;
  if (scan.map !== 0) return -1;
  if (opcode === 0x3c || opcode === 0x3d) return 0;
  if (opcode !== 0x80 && opcode !== 0x81 && opcode !== 0x83) return -1;
  if (!isRegisterForm(scan) || (scan.modrm & 0x38) !== 0x38) return -1;
  if (opcode === 0x80 && scan.rex === 0 && (scan.modrm & 7) >= 4) return -1;
  return dwarfOf(rmOperand(scan));
}
