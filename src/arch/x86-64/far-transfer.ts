import type { FarTransfer } from '../architecture.js';
import { FlowCode, type InstructionTable } from '../instruction-table.js';
import { displacement, dwarfOf, isRegisterForm, rmOperand } from './operands.js';
import { scan } from './scanner.js';
import { addedRegisters, scanAt, writesRegister } from './table-jump.js';

/** Arguments are put into their registers between the constant and the call; farther back than this nothing is looked for. */
const MAX_STEPS = 32;

/**
 * The large code model (-mcmodel=large): `movabs $f,%r; call *%r`, and position-independently, with the global offset table's address in
 * another register, `movabs $f@GOTOFF,%r; add %got,%r; call *%r`, `movabs $f@GOT,%r; mov (%got,%r),%r; call *%r`, or `call *(%got,%r)`.
 */
export function findFarTransfer(
  bytes: Uint8Array,
  table: InstructionTable,
  i: number,
): FarTransfer | undefined {
  if (!scanAt({ bytes, table }, i) || scan.opcode !== 0xff || scan.map !== 0) return undefined;
  if (!isRegisterForm(scan)) return constantOf(bytes, table, i, indexedRegisters(), true, true);
  const through = dwarfOf(rmOperand(scan));
  const at = findWrite(table, i, through);
  if (at < 0 || !scanAt({ bytes, table }, at) || scan.map !== 0) return undefined;
  if (isConstantLoad()) return constantAt(table, at, false, false);
  if (isWideLoad()) return constantOf(bytes, table, at, indexedRegisters(), true, true);
  return constantOf(bytes, table, at, addedRegisters(), true, false);
}

/** `movabs $x,%r` */
function isConstantLoad(): boolean {
  return scan.map === 0 && (scan.opcode & 0xf8) === 0xb8 && scan.immediateSize === 8;
}

/** `mov x,%r` */
function isWideLoad(): boolean {
  return scan.opcode === 0x8b && (scan.rex & 8) !== 0;
}

/** The registers of `(%a,%b)`, none for another operand. */
function indexedRegisters(): readonly number[] {
  if (isRegisterForm(scan) || scan.sib < 0 || scan.sib >> 6 !== 0 || scan.segment !== 0 || scan.addressSize)
    return [];
  if (displacement(scan) !== 0 || ((scan.sib & 7) === 5 && scan.modrm < 0x40)) return [];
  const index = ((scan.sib >> 3) & 7) | ((scan.rex & 2) << 2);
  return index === 4 ? [] : [dwarfOf(index), dwarfOf((scan.sib & 7) | ((scan.rex & 1) << 3))];
}

/** Of the registers that instruction `i` adds up, the one that holds a constant. */
function constantOf(
  bytes: Uint8Array,
  table: InstructionTable,
  i: number,
  registers: readonly number[],
  isRelative: boolean,
  isSlot: boolean,
): FarTransfer | undefined {
  for (const register of registers) {
    const at = findWrite(table, i, register);
    if (at >= 0 && scanAt({ bytes, table }, at) && isConstantLoad())
      return constantAt(table, at, isRelative, isSlot);
  }
  return undefined;
}

function constantAt(table: InstructionTable, at: number, isRelative: boolean, isSlot: boolean): FarTransfer {
  const fieldAt = (table.offsets[at] as number) + scan.immediateAt - scan.start;
  const { bytes, immediateAt } = scan;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return { from: at, fieldAt, value: Number(view.getBigInt64(immediateAt, true)), isRelative, isSlot };
}

/** The nearest instruction before `i` that writes a register, where control runs on from one to the next; -1 for none. */
function findWrite(table: InstructionTable, i: number, register: number): number {
  const { offsets, lengths, flows } = table;
  for (let at = i - 1; at >= 0 && at >= i - MAX_STEPS; at--) {
    if ((offsets[at] as number) + (lengths[at] as number) !== offsets[at + 1]) return -1;
    const flow = flows[at] as number;
    if (flow === FlowCode.jump || flow === FlowCode.indirectJump || flow >= FlowCode.return) return -1;
    if (writesRegister(table, at, register)) return at;
  }
  return -1;
}
