import type { Instruction, InstructionFields } from './instruction.js';
import type { InstructionSweeper, InstructionTable } from './instruction-table.js';
import type { InstructionSkimmer } from './skim-table.js';

/** Decodes instructions. Never throws on any bytes; reads nothing outside `[position, end)`. */
export interface InstructionDecoder {
  /**
   * Decodes the instruction at `bytes[position]`, which lies at address `address` (targets are computed from it).
   * Returns undefined for bytes that are no valid 64-bit mode instruction or that end before the instruction does.
   */
  decode(bytes: Uint8Array, position: number, address: number, end?: number): Instruction | undefined;
  /** Length in bytes alone, or 0: the fast path of linear sweeps. */
  length(bytes: Uint8Array, position: number, end?: number): number;
  /** Where the relocatable fields of a valid instruction lie. */
  fields(bytes: Uint8Array, position: number, end?: number): InstructionFields | undefined;
  /** Whether the bytes before `position` can be a call that returns to `position` (any form, also indirect). */
  isPrecededByCall(bytes: Uint8Array, position: number): boolean;
}

/** A relocated copy of a function's first instructions, ending in a jump back behind them. */
export interface DisplacedCode {
  readonly bytes: Uint8Array;
  /** Pairs of (offset in `bytes`, offset in the original function), one per original instruction and one for the jump back, ascending. */
  readonly map: readonly { readonly copy: number; readonly original: number }[];
}

/** Why code can't be displaced or redirected, for the error that names the function. */
export interface RedirectRefusal {
  readonly refused: string;
}

/** How the entry of a function is turned into a redirect. All offsets count from the function's first byte. */
export interface RedirectSite {
  /** Where the overwritten bytes begin: behind an `endbr64`, where there is one. */
  readonly offset: number;
  /** How many bytes are overwritten by the jump itself (5, or 2 for a hop). */
  readonly jumpSizeBytes: number;
  /**
   * Bytes that whole instructions at `offset` cover: these are displaced. At least `jumpSizeBytes`, but for a function
   * that is shorter than the jump, which also takes fill behind it.
   */
  readonly displacedSizeBytes: number;
  /** For a 2-byte hop: the offset (may be negative) of 5 unused padding bytes that hold the long jump. */
  readonly hopOffset: number | undefined;
}

/** Everything that depends on the instruction set when a function is redirected. */
export interface Redirector {
  /**
   * Chooses how to redirect a function.
   * `code` holds the surroundings of the function: `code[functionStart]` is its first byte, `functionSize` its size;
   * bytes outside it serve to find padding. A jump back into the displaced bytes refuses, or selects a hop.
   * `address` is the function's: the overwritten bytes never lie on two pages.
   */
  chooseSite(
    code: Uint8Array,
    functionStart: number,
    functionSizeBytes: number,
    address: number,
  ): RedirectSite | RedirectRefusal;
  /** Relocates the displaced instructions of a site from `from` (address of the function) to run at `to`. */
  displace(
    code: Uint8Array,
    functionStart: number,
    site: RedirectSite,
    from: number,
    to: number,
  ): DisplacedCode | RedirectRefusal;
  /** A direct jump of exactly `sizeBytes` (5 or 2) at address `at` to `to`; throws a RangeError when out of reach. */
  encodeJump(at: number, to: number, sizeBytes: 2 | 5): Uint8Array;
  /** A jump through an 8-byte absolute address, at most 16 bytes, for stubs to targets out of reach of ±2 GiB. */
  encodeFarJump(to: number): Uint8Array;
  /**
   * Code that jumps to `patched` when the task's state byte is not zero and falls through otherwise.
   * `slot` says where that byte lies: at the GS base, or in a table of {key, state} keyed by the thread pointer.
   * Clobbers nothing but the flags (and, for the table, registers it saves). `at` is where it will run.
   */
  encodeStateTest(at: number, patched: number, slot: StateSlotLocation): StateTest;
  /**
   * Code at `at`, {@link GATE_BYTES} of it, that reads the byte at `gate` and jumps to `below` for {@link GATE.shut}, to `patched` for {@link GATE.open},
   * and falls through for {@link GATE.choosing}. It clobbers nothing but the flags.
   */
  encodeGate(at: number, gate: number, below: number, patched: number): Uint8Array;
  /**
   * Code in which a task sets its own state and no other's, and falls through. It clobbers nothing but the flags.
   * Position-independent. At the GS base it needs FSGSBASE, and a slot of the layout below.
   */
  encodeStateStore(slot: StateSlotLocation): StateStore;
  /**
   * Code at `at` that a borrowed task is led into to call `callee`, a function without arguments. It keeps its progress in `record`
   * and returns through the signal frame that its stack pointer, a multiple of 16, leads to, whether or not anybody watches.
   */
  encodeBorrowedCall(at: number, callee: number, record: number): BorrowedCall;
  /**
   * Code for the entry of the function that the dynamic linker calls when it has mapped or unmapped objects (`r_brk` of
   * `struct r_debug`, link.h). A task counts up `rings` and waits until `answered` is as high, `armed` is 0, or nobody
   * will answer: the watcher has ended, or did not in {@link DOORBELL_LONGEST_WAITS} ms; then it puts `armed` to 0 itself. Falls through in the
   * end, with everything but the flags as it was. Another process than `owner` (a forked child) does not wait.
   */
  encodeDoorbell(request: DoorbellRequest): Uint8Array;
}

/**
 * A slot at the GS base, 16-byte aligned: byte 0 is 0, byte 1 is 1, and the base points at the one that is the task's state.
 * The lowest bit of the byte at this offset is the state that was last set.
 */
export const GS_SLOT_NOTE_OFFSET = 2;

/** What the redirects of an object that comes go by until all are written: one byte, so that they change together. */
export const GATE = { shut: 0, choosing: 1, open: 2 } as const;
export const GATE_BYTES = 19;

export type StateSlotLocation =
  | { readonly kind: 'gsBase' }
  | { readonly kind: 'threadPointerTable'; readonly table: number; readonly entries: number };

export interface DoorbellRequest {
  /** Where the code will run. */
  readonly at: number;
  /** Of the fields that it uses: writable memory of {@link DOORBELL_BYTES} within reach. */
  readonly data: number;
  /** Of the 32-bit state that the dynamic linker keeps: nothing is done while it says "add". */
  readonly debugState: number;
}

/** `r_state` of `struct r_debug` (link.h). `delete`: objects are about to be unmapped, and their destructors have run. */
export const DEBUG_STATE = { consistent: 0, add: 1, delete: 2 } as const;

/** Offsets of the doorbell's fields: 32-bit words, but for the 16 bytes of a timespec, and the registers that are saved. */
export const DOORBELL_FIELDS = {
  armed: 0,
  rings: 4,
  answered: 8,
  /** The process whose tasks wait, and the one that answers, both as the tasks see them; 0 for one that they can't see. */
  owner: 12,
  watcher: 16,
  /** The one that answers, as it sees itself; for other livegrafts. */
  watcherHere: 20,
  /** What the dynamic linker said when it rang last: one of {@link DEBUG_STATE}. */
  state: 24,
  timeout: 32,
  saved: 64,
} as const;
export const DOORBELL_BYTES = 128;
/** Of a millisecond each. */
export const DOORBELL_LONGEST_WAITS = 3000;

/** Code made by {@link Redirector.encodeStateTest}. */
export interface StateTest {
  readonly bytes: Uint8Array;
  /** Offsets of the first byte after which the state has been read: before it a task may be moved to the entry. */
  readonly stateReadAt: number;
}

/** Code made by {@link Redirector.encodeBorrowedCall}. */
export interface BorrowedCall {
  readonly bytes: Uint8Array;
  /** Offset of the instruction pointer while the task makes the system call that brings it back. */
  readonly returningAt: number;
}

/** What {@link Redirector.encodeBorrowedCall} keeps: two 32-bit words, the phase and the callee's result. */
export const BORROWED_CALL_RECORD_BYTES = 8;
export const BORROWED_CALL_RETURNED = 2;

/** Code made by {@link Redirector.encodeStateStore}; all are offsets into it. */
export interface StateStore {
  readonly bytes: Uint8Array;
  /** The one byte that holds the state which is stored: it may be overwritten while the code runs. */
  readonly valueAt: number;
  /**
   * Instructions at or behind which the slot at the GS base is still going to be used: a task stopped at `at` can be moved
   * to `resumeAt`, where it goes on as if it had been passed over. Empty for a table.
   */
  readonly slotUses: readonly { readonly at: number; readonly resumeAt: number }[];
}

/** What names and relocations say about code of this architecture. */
export interface CodeIdioms {
  /** Helpers that stand for a return or an indirect jump or call, as the kernel's retpolines do. */
  thunkKind(symbol: string): 'return' | 'indirect' | undefined;
  /** The register that a helper for indirect jumps goes through, by the helper's name. */
  thunkRegister(symbol: string): number | undefined;
  /** How a relocation type computes a field: `S + A`, or `S + A - P`; undefined for the others. */
  relocationKind(type: number): { readonly sizeBytes: 4 | 8; readonly isRelative: boolean } | undefined;
  /** Whether a relocation type makes a field lead to a slot with its symbol's address (`G + GOT + A - P`). */
  isSlotRelocation(type: number): boolean;
  /**
   * What a relocation of a constant in a register leads to: the symbol itself, or the slot that the dynamic linker puts its address into; undefined
   * for others.
   */
  farReference(type: number): 'symbol' | 'slot' | undefined;
  /** Whether an instruction waits for an interrupt, and goes on behind it, when it runs with a kernel's privileges (else it faults). */
  isHalt(bytes: Uint8Array, at: number, lengthBytes: number): boolean;
  /** What a function that begins at `at` jumps over with its first instruction, where that is known to be data; as offsets. */
  leadingData(bytes: Uint8Array, at: number): { readonly start: number; readonly end: number } | undefined;
  /** The assembler's name of a DWARF register number. */
  registerName(register: number): string;
}

/** What an indirect jump's instructions say of the table that it reads its target from. */
export interface TableJump {
  /** Where the 32-bit field lies that holds the table's address, and what it says: an address, or a place in the code's own number line. */
  readonly fieldAt: number;
  readonly value: number;
  readonly isPcRelative: boolean;
  readonly entrySizeBytes: 4 | 8;
  /** Entries count from the table's first byte. */
  readonly isRelative: boolean;
  /** How many entries can be reached, undefined where the code does not tell. */
  readonly count: number | undefined;
}

/** Finds a {@link TableJump}: see `src/arch/x86-64/table-jump.ts`. Indexes are the instruction table's. */
export type TableJumpFinder = (
  bytes: Uint8Array,
  table: InstructionTable,
  jump: number,
  previous: (i: number) => number,
  register: number | undefined,
) => TableJump | undefined;

/** What an indirect call or jump goes through that is made from a constant in a register, as in the large code model. */
export interface FarTransfer {
  /** Index of the instruction that loads the constant: what is said holds where control comes from there. */
  readonly from: number;
  /** Where the 64-bit field lies that holds the constant, and what it says. */
  readonly fieldAt: number;
  readonly value: number;
  /** The constant counts from the global offset table, whose address was added. */
  readonly isRelative: boolean;
  /** The constant is where the target's address lies. */
  readonly isSlot: boolean;
}

/** One instruction set. Nothing outside `src/arch/` knows which it has. */
export interface Architecture {
  readonly name: 'x86-64';
  /** ELF `e_machine`. */
  readonly elfMachine: number;
  readonly decoder: InstructionDecoder;
  readonly sweeper: InstructionSweeper;
  readonly skimmer: InstructionSkimmer;
  readonly redirector: Redirector;
  readonly findTableJump: TableJumpFinder;
  /** The constant that an indirect call or jump, by index, goes through; undefined when it is none that was loaded shortly before. */
  findFarTransfer(bytes: Uint8Array, table: InstructionTable, i: number): FarTransfer | undefined;
  readonly idioms: CodeIdioms;
  readonly pointerSizeBytes: 8;
  /** DWARF numbers of the stack pointer, frame pointer and return address. */
  readonly stackPointer: number;
  readonly framePointer: number;
  readonly returnAddress: number;
  /** DWARF numbers of the registers that a callee preserves. */
  readonly calleeSaved: readonly number[];
  /** Bytes below the stack pointer that a leaf function may use. */
  readonly redZoneBytes: number;
}
