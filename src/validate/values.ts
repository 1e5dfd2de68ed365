/**
 * What is known of a register or a stack slot, as one 32-bit number so that states live in typed arrays:
 * `base * 2^24 + (offset + 2^23)`, 0 for "unknown".
 *
 * Bases: the CFA of the function that is analysed, the value a register had on entry, or a place on the stack that is
 * known only by the instruction that made it (a realigned stack pointer, whatever a table claims without reason).
 */

export type Value = number;

export const UNKNOWN: Value = 0;

/** Frames are at most as large as the stack that a thread has by default: 8 MiB. */
const OFFSET_BITS = 24;
const OFFSET_RANGE = 1 << (OFFSET_BITS - 1);
const OFFSET_MASK = (1 << OFFSET_BITS) - 1;

const CFA_BASE = 1;
const ENTRY_BASE = 2;
/** DWARF numbers 0 to 16, the return address included. */
const ENTRY_REGISTERS = 17;
const PLACE_BASE = ENTRY_BASE + ENTRY_REGISTERS;
const LAST_BASE = 255;

/** `base + offset`; unknown where the offset is absurd for a frame. */
function makeValue(base: number, offset: number): Value {
  if (offset >= OFFSET_RANGE || offset < -OFFSET_RANGE) return UNKNOWN;
  return (base << OFFSET_BITS) | (offset + OFFSET_RANGE) | 0;
}

export function cfaValue(offset: number): Value {
  return makeValue(CFA_BASE, offset);
}

/** The value that a register had when the function was entered. */
export function entryValue(register: number): Value {
  return makeValue(ENTRY_BASE + register, 0);
}

/** A place made at the `site`-th instruction. Sites far apart may share a base; they never meet in one state. */
export function placeValue(site: number): Value {
  return makeValue(PLACE_BASE + (site % (LAST_BASE - PLACE_BASE)), 0);
}

export function baseOf(value: Value): number {
  return value >>> OFFSET_BITS;
}

export function offsetOf(value: Value): number {
  return (value & OFFSET_MASK) - OFFSET_RANGE;
}

export function addTo(value: Value, offset: number): Value {
  if (value === UNKNOWN || offset === 0) return value;
  const sum = (value & OFFSET_MASK) + offset;
  return sum >= 0 && sum <= OFFSET_MASK ? value + offset : UNKNOWN;
}

/** The register of an entry value with any offset, -1 for other values. */
function entryRegisterOf(value: Value): number {
  const register = baseOf(value) - ENTRY_BASE;
  return register >= 0 && register < ENTRY_REGISTERS ? register : -1;
}

/** For people: `CFA-16`, `rbx on entry`, `a realigned place+8`, `unknown`. */
export function describeValue(value: Value, nameOf: (register: number) => string): string {
  if (value === UNKNOWN) return 'unknown';
  const base = baseOf(value);
  const offset = offsetOf(value);
  const suffix = offset === 0 ? '' : offset > 0 ? `+${offset}` : `${offset}`;
  if (base === CFA_BASE) return `CFA${suffix}`;
  const register = entryRegisterOf(value);
  return register >= 0 ? `${nameOf(register)} on entry${suffix}` : `a realigned address${suffix}`;
}
