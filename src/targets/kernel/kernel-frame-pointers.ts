import type { InstructionDecoder } from '../../arch/architecture.js';
import { linkAddress } from '../../base/brand.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import {
  BP_REG_SHIFT,
  ORC_REG_BP,
  ORC_REG_PREV_SP,
  ORC_REG_SP,
  ORC_TYPE_CALL,
  ORC_TYPE_END_OF_STACK,
  ORC_TYPE_REGS,
  SIGNAL_BIT,
  TYPE_SHIFT,
} from '../../orc/format.js';
import { convertOrcEntry } from '../../orc/row.js';
import { prepareRow, type UnwindRow } from '../../unwind/unwind-row.js';

/**
 * Rows for a kernel that keeps frame pointers in place of ORC tables (CONFIG_UNWINDER_FRAME_POINTER). What is reliable follows
 * Documentation/livepatch/reliable-stacktrace.rst and arch/x86/kernel/unwind_frame.c: a function that has called another has set up its
 * frame; where one was interrupted, only its first instruction tells where its frame is, or the way to its return.
 */

function row(spOffset: number, bpOffset: number, fields: number): UnwindRow {
  const rule = convertOrcEntry(spOffset, bpOffset, fields, '6.4');
  if (rule === undefined) throw new Error('no such row');
  return prepareRow({ ...rule, start: 0, end: 0 });
}

const CALL = ORC_TYPE_CALL << TYPE_SHIFT;
/** Behind `push %rbp; mov %rsp, %rbp`. */
const FRAME = row(16, -16, ORC_REG_BP | (ORC_REG_PREV_SP << BP_REG_SHIFT) | CALL);
/** Where nothing was pushed yet. */
const ENTRY = row(8, 0, ORC_REG_SP | CALL);
const END = row(0, 0, ORC_TYPE_END_OF_STACK << TYPE_SHIFT);
/**
 * Entry code has saved the registers, and has left in the frame pointer where they are, plus one: no address of a frame is odd
 * (`ENCODE_FRAME_POINTER` in arch/x86/include/asm/frame.h).
 */
export const ENCODED_FRAME = row(0, 0, ORC_REG_BP | (ORC_TYPE_REGS << TYPE_SHIFT) | SIGNAL_BIT);

/** The code where system calls enter clears the frame pointer, and calls with all registers on top of the stack. */
const SAVED = row(0, 0, ORC_REG_SP | (ORC_TYPE_REGS << TYPE_SHIFT) | SIGNAL_BIT);

export interface FramePointerCode {
  /** Whether the first instruction of a function that C code calls is there. */
  isEntry(address: number): boolean;
  /** Whether a task that has never run begins there: its frame pointer leads to its registers. */
  isNewTaskEntry(address: number): boolean;
  /** Whether it is where system calls enter the kernel. */
  isSystemCall(address: number): boolean;
  /**
   * Whether a return there may lead to code that has not set up its frame: a retpoline's jumps to a function, ftrace's goes on behind the call at
   * a function's entry. The frame pointer is that of the caller then, whom a row of frames would leave out.
   */
  mayReturnToNoFrame(address: number): boolean;
  /** What follows an address, up to some instructions; empty where nothing can be read. */
  codeAt(address: number): Uint8Array;
  readonly decoder: InstructionDecoder;
  /** `__x86_return_thunk`, to which functions jump in place of a return. */
  readonly returnThunk: number | undefined;
  /** Whether a CPU began there, with no frame at all. */
  isStartup(address: number): boolean;
}

/** For a module's `findRow`: `interrupted` tells that the instruction at the address is the next one to run. */
export function findFrameRow(code: FramePointerCode) {
  return (address: number, interrupted: boolean): UnwindRow | undefined => {
    if (code.isStartup(address)) return END;
    if (!interrupted && code.isSystemCall(address)) return SAVED;
    if (!interrupted || code.isNewTaskEntry(address)) return FRAME;
    return code.isEntry(address) ? ENTRY : findRowBeforeReturn(code, address);
  };
}

/** `pop %rbp; ret`, and what else there may be. */
const MOST_BEFORE_RETURN = 6;
const DW_RBP = 6;

/**
 * For code that runs straight to a return, and takes nothing off the stack meanwhile but the frame pointer: where the return will find its
 * address, that lies now. So do the idle loop's functions, behind their `hlt`, where idle CPUs are all the time.
 */
function findRowBeforeReturn(code: FramePointerCode, address: number): UnwindRow | undefined {
  if (code.mayReturnToNoFrame(address)) return undefined;
  const bytes = code.codeAt(address);
  let popped = 0;
  let framePointerAt: number | undefined;
  for (let at = 0, i = 0; i < MOST_BEFORE_RETURN; i++) {
    const instruction = code.decoder.decode(bytes, at, address + at);
    if (instruction === undefined) return undefined;
    const { flow, target, stackOps, lengthBytes } = instruction;
    const isThunk = flow === 'jump' && target !== undefined && target === code.returnThunk;
    if (
      isThunk ||
      (flow === 'return' && stackOps.every((op) => op.kind === 'returnPop' && op.extraBytes === 0))
    ) {
      const cfa = popped + 8;
      if (framePointerAt === undefined) return row(cfa, 0, ORC_REG_SP | CALL);
      return row(cfa, framePointerAt - cfa, ORC_REG_SP | (ORC_REG_PREV_SP << BP_REG_SHIFT) | CALL);
    }
    if (flow !== 'next') return undefined;
    for (const op of stackOps) {
      if (op.kind !== 'pop' || op.register !== DW_RBP || op.sizeBytes !== 8) return undefined;
      framePointerAt = popped;
      popped += 8;
    }
    at += lengthBytes;
  }
  return undefined;
}

/** Functions that every kernel has, and that do call others. */
const SAMPLES = ['schedule', 'kthread', 'msleep'];
const ENDBR64 = [0xf3, 0x0f, 0x1e, 0xfa];
/** `call __fentry__` as the compiler writes it. */
const FENTRY_BYTES = 5;
const SET_UP = [0x55, 0x48, 0x89, 0xe5];

/** Whether a kernel without ORC tables was built with frame pointers: then all of its C functions begin with them. */
export function keepsFramePointers({ elf, symbols }: Pick<KernelImage, 'elf' | 'symbols'>): boolean {
  if (elf.findSection('.orc_unwind') !== undefined) return false;
  return SAMPLES.every((name) => {
    const symbol = symbols.findUnique(name);
    const code = symbol && elf.bytesAt(linkAddress(symbol.address), 16);
    if (code === undefined) return false;
    const entry = ENDBR64.every((byte, i) => code[i] === byte) ? ENDBR64.length : 0;
    return [entry, entry + FENTRY_BYTES].some((at) => SET_UP.every((byte, i) => code[at + i] === byte));
  });
}
