import {
  ORC_REG_SP,
  ORC_TYPE_CALL,
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

/**
 * Thunks of indirect calls and jumps (arch/x86/lib/retpoline.S): the plain ones, those that count calls, and those of other mitigations.
 */
const THUNKS = ['', 'call_', 'jump_', 'its_', 'paranoid_'].flatMap((kind) =>
  [
    ...['rax', 'rcx', 'rdx', 'rbx', 'rsp', 'rbp', 'rsi', 'rdi'],
    ...['r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'],
  ].map((register) => `__x86_indirect_${kind}thunk_${register}`),
);
/**
 * What functions jump to in place of a return, and retpolines to go where they jump (arch/x86/lib/retpoline.S). Some call on before they return;
 * `__x86_return_skl` is the name that `call_depth_return_thunk` had before 6.6.
 */
const RETURN_THUNKS = [
  ...['__x86_return_thunk', 'its_return_thunk', 'retbleed_return_thunk', 'call_depth_return_thunk'],
  ...['__x86_return_skl', 'srso_return_thunk', 'srso_alias_return_thunk'],
];
/** What AMD's call: it takes the address of that call off the stack, then returns. Nothing is in between its two instructions. */
const SAFE_RETURNS = ['srso_safe_ret', 'srso_alias_safe_ret'];
/** Of `lfence`, which a thunk begins with where a processor has that in place of a retpoline. */
const LFENCE_BYTES = 3;
/** Of `mov %reg, (%rsp)`. */
const STORE_BYTES = 4;

function row(spOffset: number, type: number, flags = SIGNAL_BIT): UnwindRow {
  const rule = convertOrcEntry(spOffset, 0, ORC_REG_SP | (type << TYPE_SHIFT) | flags, '6.4');
  if (rule === undefined) throw new Error('no such row');
  return prepareRow({ ...rule, start: 0, end: 0 });
}

/** All registers lie where the stack pointer is. */
const WHOLE = row(0, ORC_TYPE_REGS);
/** The return address lies where the stack pointer is, or a word above. */
const [CALLED, CALLED_ABOVE] = [row(8, ORC_TYPE_CALL, 0), row(16, ORC_TYPE_CALL, 0)];
const [RETURNS, RETURNS_ABOVE] = [CALLED, CALLED_ABOVE].map((row): UnwindRow => ({ ...row, isReturn: true }));

/**
 * Mends what the kernel's ORC tables say of entry code where a saver is at work, and of thunks; the kernel's own unwinder is lost there.
 *
 * - A saver's first rows are those of a function, by its return address. From its third instruction on a register is in the place of that,
 *   and objtool is told so in 6.1 and later only. The processor's frame lies at the same distance from where the address was at any time.
 * - Behind the call of a saver the registers are whole, but the hint that says so (`UNWIND_HINT_REGS` in `idtentry_body`) follows an
 *   instruction later in 6.1 and later: what is called or jumped to from a saver, like `sync_regs`, returns to a row of before the call. The saver itself
 *   is never walked through that row: above.
 * - Of what is interrupted in a thunk the tables of before 6.4 say that the stack ends there, and later ones nothing: it has been called or jumped
 *   to, so the return address of the function that goes through it is on top; behind the call in a retpoline, the place in that to which no
 *   processor returns lies above it, where the address to go to is written.
 * - A return thunk, or what that calls, may be where such a retpoline jumps: then no call has put there what the return takes off the stack.
 */
export function mendEntryRows(kernel: KernelAddresses, findRow: FindRow): FindRow {
  const savers = rangesOf(kernel, SAVERS);
  const isBehindCall = (address: number): boolean => {
    const call = kernel.imageBytes(address - CALL_BYTES, CALL_BYTES);
    if (call?.length !== CALL_BYTES || call[0] !== CALL_OPCODE) return false;
    const target = address + new DataView(call.buffer, call.byteOffset).getInt32(1, true);
    return savers.some(({ start }) => start === target);
  };
  const findThunkRow = thunkRows(kernel);
  const findReturnRow = returnRows(kernel, findRow);
  return (address, interrupted) => {
    const thunk = findThunkRow(address);
    if (thunk !== undefined) return interrupted ? thunk.row : undefined;
    const found = (interrupted ? findReturnRow(address) : undefined) ?? findRow(address, interrupted);
    if (found === undefined || found.cfaRegister !== DW_RSP) return found;
    // Only entry code has rows of saved registers.
    if (found.isSignalFrame) return isBehindCall(interrupted ? address : address + 1) ? WHOLE : found;
    const isSaver = savers.some(({ start, end }) => address >= start && address < end);
    return isSaver ? row(found.cfaOffset + ERROR_CODE_BYTES, ORC_TYPE_REGS_PARTIAL) : found;
  };
}

interface Range {
  readonly start: number;
  readonly end: number;
}

/** Where those functions are that the kernel has. */
function rangesOf(kernel: KernelAddresses, names: readonly string[]): Range[] {
  return names.flatMap((name) => {
    const symbol = kernel.image.symbols.findUnique(name);
    if (symbol === undefined) return [];
    const start = kernel.relocate(symbol.address);
    return { start, end: start + symbol.sizeBytes };
  });
}

/** What holds where a return thunk, or what it calls, was interrupted: undefined elsewhere. */
function returnRows(kernel: KernelAddresses, findRow: FindRow): (address: number) => UnwindRow | undefined {
  const [thunks, safeReturns] = [rangesOf(kernel, RETURN_THUNKS), rangesOf(kernel, SAFE_RETURNS)];
  const find = (ranges: readonly Range[], address: number) =>
    ranges.find(({ start, end }) => address >= start && address < end);
  return (address) => {
    const safeReturn = find(safeReturns, address);
    if (safeReturn !== undefined) return address === safeReturn.start ? RETURNS_ABOVE : RETURNS;
    const thunk = find(thunks, address);
    if (thunk === undefined || address === thunk.start) return thunk && RETURNS;
    const found = findRow(address, true);
    return found === undefined || found.isOutermost ? undefined : { ...found, isReturn: true };
  };
}

/** Tells whether an address is in a thunk, and what holds there: nothing in between its instructions. */
function thunkRows(
  kernel: KernelAddresses,
): (address: number) => { readonly row: UnwindRow | undefined } | undefined {
  const thunks = rangesOf(kernel, THUNKS).map((range) => ({
    ...range,
    inner: innerCallTarget(kernel, range.start),
  }));
  const [low, high] = [
    Math.min(...thunks.map(({ start }) => start)),
    Math.max(...thunks.map(({ end }) => end)),
  ];
  return (address) => {
    if (!(address >= low && address < high)) return undefined;
    const thunk = thunks.find(({ start, end }) => address >= start && address < end);
    if (thunk === undefined) return undefined;
    const { start, inner } = thunk;
    if (address === start || address === start + LFENCE_BYTES) return { row: CALLED };
    if (inner !== undefined && (address === inner || address === inner + STORE_BYTES))
      return { row: CALLED_ABOVE };
    return { row: undefined };
  };
}

/** Where the call leads that a retpoline begins with. Where the kernel has put another mitigation in its place, nothing stands there. */
function innerCallTarget(kernel: KernelAddresses, start: number): number | undefined {
  const code = kernel.imageBytes(start, CALL_BYTES);
  if (code?.length !== CALL_BYTES || code[0] !== CALL_OPCODE) return undefined;
  return start + CALL_BYTES + new DataView(code.buffer, code.byteOffset).getInt32(1, true);
}
