/**
 * The one shape into which DWARF CFI, ORC and proven frame pointers are converted. Consumers never know which table
 * a row came from.
 *
 * Register numbers are DWARF's (x86-64 psABI figure 3.36: rax 0, rdx 1, rcx 2, rbx 3, rsi 4, rdi 5, rbp 6, rsp 7,
 * r8–r15 8–15, return address 16).
 */

/** How to compute the canonical frame address, the caller's stack pointer at the call. */
export type CfaRule =
  | { readonly kind: 'register'; readonly register: number; readonly offset: number }
  | { readonly kind: 'expression'; readonly expression: Uint8Array };

/** How to find the caller's value of one register. */
export type RegisterRule =
  /** Not recoverable. For the return address: this is the outermost frame. */
  | { readonly kind: 'undefined' }
  | { readonly kind: 'same' }
  /** Saved at CFA + offset. */
  | { readonly kind: 'offset'; readonly offset: number }
  /** Is CFA + offset. */
  | { readonly kind: 'valOffset'; readonly offset: number }
  | { readonly kind: 'register'; readonly register: number }
  /** Saved at the address that the expression yields (CFA is pushed first). */
  | { readonly kind: 'expression'; readonly expression: Uint8Array }
  /** Is what the expression yields. */
  | { readonly kind: 'valExpression'; readonly expression: Uint8Array };

/** The claim of a table about every address in `[start, end)`, in the address space of the table. */
export interface CfiRow {
  readonly start: number;
  readonly end: number;
  readonly cfa: CfaRule;
  /** Rules by DWARF register number; a register that is missing is unspecified ("same" for callee-saved ones). */
  readonly registers: ReadonlyMap<number, RegisterRule>;
  readonly returnAddressRegister: number;
  /** The frame was made by a signal or exception, not by a call: its return address is not one past a call. */
  readonly signalFrame: boolean;
  /** `DW_CFA_GNU_args_size`, bytes. */
  readonly argsSizeBytes: number;
}
