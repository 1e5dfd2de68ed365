import {
  ORC_REG_SP,
  ORC_TYPE_REGS,
  ORC_TYPE_REGS_PARTIAL,
  SIGNAL_BIT,
  TYPE_SHIFT,
} from '../../orc/format.js';
import { convertOrcEntry } from '../../orc/row.js';
import { prepareRow, type UnwindRow } from '../../unwind/unwind-row.js';
import type { KernelAddresses } from './running-kernel.js';

type FindRow = (address: number, interrupted: boolean) => UnwindRow | undefined;

/**
 * Functions of the entry code that push the registers of an exception below the processor's frame, above their own return address
 * (`PUSH_AND_CLEAR_REGS save_ret=1` in arch/x86/entry/calling.h).
 */
const SAVERS = ['error_entry', 'paranoid_entry'];
const CALL_OPCODE = 0xe8;
const CALL_BYTES = 5;
/** `orig_ax` (an error code, or nothing), which lies between the return address and the processor's frame. */
const ERROR_CODE_BYTES = 8;
const DW_RSP = 7;

function row(spOffset: number, type: number): UnwindRow {
  const rule = convertOrcEntry(spOffset, 0, ORC_REG_SP | (type << TYPE_SHIFT) | SIGNAL_BIT, '6.4');
  if (rule === undefined) throw new Error('no such row');
  return prepareRow({ ...rule, start: 0, end: 0 });
}

/** All registers lie where the stack pointer is. */
const WHOLE = row(0, ORC_TYPE_REGS);

/**
 * Mends what the kernel's ORC tables say of entry code where a saver is at work; the kernel's own unwinder is lost there.
 *
 * - A saver's first rows are those of a function, by its return address. From its third instruction on a register is in the place of that,
 *   and objtool is told so in 6.1 and later only. The processor's frame lies at the same distance from where the address was at any time.
 * - Behind the call of a saver the registers are whole, but the hint that says so (`UNWIND_HINT_REGS` in `idtentry_body`) follows an
 *   instruction later in 6.1 and later: what is called or jumped to from a saver, like `sync_regs`, returns to a row of before the call. The saver itself
 *   is never walked through that row: above.
 */
export function mendEntryRows(kernel: KernelAddresses, findRow: FindRow): FindRow {
  const savers = SAVERS.flatMap((name) => {
    const symbol = kernel.image.symbols.findUnique(name);
    if (symbol === undefined) return [];
    const start = kernel.relocate(symbol.address);
    return { start, end: start + symbol.sizeBytes };
  });
  const isBehindCall = (address: number): boolean => {
    const call = kernel.imageBytes(address - CALL_BYTES, CALL_BYTES);
    if (call?.length !== CALL_BYTES || call[0] !== CALL_OPCODE) return false;
    const target = address + new DataView(call.buffer, call.byteOffset).getInt32(1, true);
    return savers.some(({ start }) => start === target);
  };
  return (address, interrupted) => {
    const found = findRow(address, interrupted);
    if (found === undefined || found.cfaRegister !== DW_RSP) return found;
    // Only entry code has rows of saved registers.
    if (found.isSignalFrame) return isBehindCall(interrupted ? address : address + 1) ? WHOLE : found;
    const isSaver = savers.some(({ start, end }) => address >= start && address < end);
    return isSaver ? row(found.cfaOffset + ERROR_CODE_BYTES, ORC_TYPE_REGS_PARTIAL) : found;
  };
}
