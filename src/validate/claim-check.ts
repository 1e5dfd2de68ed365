import type { Claim } from './claims.js';
import type { FrameState } from './frame-state.js';
import { evaluateSymbolically } from './symbolic-expression.js';
import { addTo, cfaValue, entryValue, placeValue, UNKNOWN, type Value } from './values.js';

/** What came of holding one claim against one state. */
export const Verdict = {
  /** Everything that is claimed follows from the state. */
  proven: 0,
  /** The CFA can't be derived: nothing contradicts the claim. */
  unknown: 1,
  /** The claimed CFA is another address than the derived one. */
  wrongCfa: 2,
  /** The CFA is right; a register is not where the claim says. */
  wrongRegister: 3,
} as const;

/** The last check's details. */
export interface CheckDetail {
  verdict: number;
  /** Of wrongRegister. */
  register: number;
  /** What was derived: the value at the claimed CFA expression, or of the register or its slot. */
  derived: Value;
}

export const detail: CheckDetail = { verdict: Verdict.proven, register: 0, derived: UNKNOWN };

const CFA = cfaValue(0);

/** Fills {@link detail} and returns its verdict. `address` is what the instruction pointer would hold. */
export function checkClaim(claim: Claim, state: FrameState, address: number): number {
  detail.verdict = Verdict.proven;
  if (claim.isOutermost) return Verdict.proven;
  const { registers } = state;
  const derived =
    claim.cfaRegister >= 0
      ? addTo(registers[claim.cfaRegister] as number, claim.cfaOffset)
      : claim.cfa.kind === 'expression'
        ? evaluateSymbolically(claim.cfa.expression, state, address, undefined)
        : UNKNOWN;
  if (derived !== CFA) {
    detail.derived = derived;
    detail.verdict = derived === UNKNOWN ? Verdict.unknown : Verdict.wrongCfa;
    return detail.verdict;
  }
  const { savedRegisters, savedOffsets, sameRegisters, otherRegisters } = claim;
  for (let i = 0; i < savedRegisters.length; i++) {
    const register = savedRegisters[i] as number;
    const value = state.slot(cfaValue(savedOffsets[i] as number));
    if (value !== entryValue(register) && isWrong(register, value, state)) return Verdict.wrongRegister;
  }
  for (let i = 0; i < sameRegisters.length; i++) {
    const register = sameRegisters[i] as number;
    if (
      registers[register] !== entryValue(register) &&
      isWrong(register, registers[register] as number, state)
    ) {
      return Verdict.wrongRegister;
    }
  }
  for (const register of otherRegisters) {
    const value = valueByRule(claim, register, state, address);
    if (value !== entryValue(register) && isWrong(register, value, state)) return Verdict.wrongRegister;
  }
  return detail.verdict;
}

/** False where the value may be as claimed, since the state does not know all of the frame. */
function isWrong(register: number, derived: Value, state: FrameState): boolean {
  const isSilent = derived === UNKNOWN && state.isPartial;
  if (isSilent && detail.verdict === Verdict.unknown) return false;
  detail.verdict = isSilent ? Verdict.unknown : Verdict.wrongRegister;
  detail.register = register;
  detail.derived = derived;
  return !isSilent;
}

function valueByRule(claim: Claim, register: number, state: FrameState, address: number): Value {
  const rule = claim.rules.get(register);
  switch (rule?.kind) {
    case 'register':
      return rule.register < 16 ? (state.registers[rule.register] as number) : UNKNOWN;
    case 'valOffset':
      return cfaValue(rule.offset);
    case 'expression':
      return state.slot(evaluateSymbolically(rule.expression, state, address, CFA));
    case 'valExpression':
      return evaluateSymbolically(rule.expression, state, address, CFA);
    default:
      return UNKNOWN;
  }
}

/**
 * Makes the state what the claim says, as far as it says anything; the rest is unknown. `site` names the place for
 * addresses that only the claim knows.
 */
export function assumeClaim(claim: Claim, state: FrameState, site: number, stackPointer: number): void {
  state.clear();
  if (claim.isOutermost) return;
  state.isPartial = claim.cfaRegister !== stackPointer;
  if (claim.cfaRegister >= 0) state.setRegister(claim.cfaRegister, cfaValue(0 - claim.cfaOffset));
  else if (claim.cfa.kind === 'expression') assumeIndirect(claim.cfa.expression, state, site);
  claim.savedRegisters.forEach((register, i) => {
    state.setSlot(cfaValue(claim.savedOffsets[i] as number), entryValue(register));
  });
  for (const register of claim.sameRegisters) {
    if (register !== claim.cfaRegister) state.setRegister(register, entryValue(register));
  }
  for (const register of claim.otherRegisters) {
    const rule = claim.rules.get(register);
    if (rule?.kind === 'register' && rule.register < 16)
      state.setRegister(rule.register, entryValue(register));
    else if (rule?.kind === 'expression') {
      const saved = plainRegisterOffset(rule.expression);
      if (saved === undefined) continue;
      if (state.registers[saved.register] === UNKNOWN) state.setRegister(saved.register, placeValue(site));
      state.setSlot(addTo(state.registers[saved.register] as number, saved.offset), entryValue(register));
    }
  }
}

/** `*(register + offset) + more`, which is how realigned frames are described. */
function assumeIndirect(expression: Uint8Array, state: FrameState, site: number): void {
  const start = plainRegisterOffset(expression);
  if (start === undefined || expression[start.sizeBytes] !== 0x06) return;
  const rest = expression.subarray(start.sizeBytes + 1);
  const more = rest.length === 0 ? 0 : addedConstant(rest);
  if (more === undefined) return;
  const place = placeValue(site);
  state.setRegister(start.register, place);
  state.setSlot(addTo(place, start.offset), cfaValue(0 - more));
}

/** `DW_OP_breg<n> offset` at the start of an expression. */
function plainRegisterOffset(
  expression: Uint8Array,
): { register: number; offset: number; sizeBytes: number } | undefined {
  const op = expression[0] ?? 0;
  if (op < 0x70 || op > 0x7f) return undefined;
  let [offset, shift, at] = [0, 0, 1];
  for (; at < Math.min(expression.length, 5); at++) {
    const byte = expression[at] as number;
    offset |= (byte & 0x7f) << shift;
    shift += 7;
    if (byte < 0x80) {
      if ((byte & 0x40) !== 0 && shift < 32) offset |= -1 << shift;
      return { register: op - 0x70, offset, sizeBytes: at + 1 };
    }
  }
  return undefined;
}

/** `DW_OP_plus_uconst n`, or `DW_OP_consts n DW_OP_plus`. */
function addedConstant(rest: Uint8Array): number | undefined {
  if (rest[0] === 0x23 && rest.length === 2 && (rest[1] as number) < 0x80) return rest[1];
  if (rest[0] !== 0x11 || rest[rest.length - 1] !== 0x22) return undefined;
  const parsed = plainRegisterOffset(Uint8Array.of(0x70, ...rest.subarray(1, -1)));
  return parsed?.offset;
}
