import type { CfiRow, RegisterRule } from '../cfi/row.js';

/** A {@link CfiRow} prepared for the walk: what nearly every row says is read from plain numbers. */
export interface UnwindRow {
  /** Register and offset of the CFA; register is -1 when it is an expression. */
  readonly cfaRegister: number;
  readonly cfaOffset: number;
  readonly cfaExpression: Uint8Array | undefined;
  /** Register numbers and, at the same index, the offsets from the CFA where they are saved. */
  readonly savedRegisters: readonly number[];
  readonly savedOffsets: readonly number[];
  /** Rules of other kinds, in any number. */
  readonly otherRules: readonly (readonly [number, RegisterRule])[];
  /** The return address is `undefined`: this is the outermost frame. */
  readonly isOutermost: boolean;
  /** Where the return address is saved, from the CFA; undefined when another rule says how. */
  readonly returnOffset: number | undefined;
  readonly returnAddressRegister: number;
  readonly isSignalFrame: boolean;
  /**
   * The code interrupted there only returns to what is on top of the stack, be that a caller or where a retpoline jumps to: the walk goes on
   * as if it had.
   */
  readonly isReturn?: boolean;
}

export function prepareRow(row: CfiRow): UnwindRow {
  const savedRegisters: number[] = [];
  const savedOffsets: number[] = [];
  const otherRules: (readonly [number, RegisterRule])[] = [];
  const returnRule = row.registers.get(row.returnAddressRegister);
  for (const [register, rule] of row.registers) {
    if (register === row.returnAddressRegister && rule.kind === 'offset') continue;
    if (rule.kind === 'offset') {
      savedRegisters.push(register);
      savedOffsets.push(rule.offset);
    } else if (rule.kind !== 'same') otherRules.push([register, rule]);
  }
  return {
    cfaRegister: row.cfa.kind === 'register' ? row.cfa.register : -1,
    cfaOffset: row.cfa.kind === 'register' ? row.cfa.offset : 0,
    cfaExpression: row.cfa.kind === 'expression' ? row.cfa.expression : undefined,
    savedRegisters,
    savedOffsets,
    otherRules,
    isOutermost: returnRule?.kind === 'undefined',
    returnOffset: returnRule?.kind === 'offset' ? returnRule.offset : undefined,
    returnAddressRegister: row.returnAddressRegister,
    isSignalFrame: row.signalFrame,
  };
}
