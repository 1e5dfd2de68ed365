import { ByteReader } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';
import type { FrameState } from './frame-state.js';
import { addTo, UNKNOWN, type Value } from './values.js';

/** A number that is known, or an address that is known relative to something. */
type Term = { readonly constant: number } | { readonly value: Value };

const MAX_STEPS = 200;
const UNKNOWN_TERM: Term = { value: UNKNOWN };

/**
 * Evaluates a DWARF expression (DWARF 5 section 2.5) over a state: registers and slots by what is known of them, the
 * instruction pointer by its address, which procedure linkage tables ask for. Unknown where the state does not tell.
 */
export function evaluateSymbolically(
  expression: Uint8Array,
  state: FrameState,
  address: number,
  initial: Value | undefined,
): Value {
  const reader = new ByteReader(expression, 'DWARF expression');
  const stack: Term[] = initial === undefined ? [] : [{ value: initial }];
  try {
    for (let steps = 0; !reader.atEnd && steps < MAX_STEPS; steps++) {
      if (!step(reader, stack, state, address)) return UNKNOWN;
    }
  } catch (error) {
    if (error instanceof ParseError) return UNKNOWN;
    throw error;
  }
  const top = stack.pop();
  return top !== undefined && 'value' in top && reader.atEnd ? top.value : UNKNOWN;
}

function step(reader: ByteReader, stack: Term[], state: FrameState, address: number): boolean {
  const op = reader.readU8();
  const constant = (value: number) => stack.push({ constant: value }) > 0;
  const register = (number: number, offset: number): boolean => {
    if (number === 16) return constant(address + offset);
    if (number > 16) return false;
    return stack.push({ value: addTo(state.registers[number] as number, offset) }) > 0;
  };
  if (op >= 0x30 && op <= 0x4f) return constant(op - 0x30); // DW_OP_lit
  if (op >= 0x70 && op <= 0x8f) return register(op - 0x70, reader.readSleb128()); // DW_OP_breg
  switch (op) {
    case 0x06: {
      const term = stack.pop(); // DW_OP_deref
      if (term === undefined) return false;
      return stack.push('value' in term ? { value: state.slot(term.value) } : UNKNOWN_TERM) > 0;
    }
    case 0x08:
      return constant(reader.readU8());
    case 0x09:
      return constant(reader.readI8());
    case 0x0a:
      return constant(reader.readU16());
    case 0x0b:
      return constant(reader.readI16());
    case 0x0c:
      return constant(reader.readU32());
    case 0x0d:
      return constant(reader.readI32());
    case 0x10:
      return constant(reader.readUleb128());
    case 0x11:
      return constant(reader.readSleb128());
    case 0x12: {
      const top = stack[stack.length - 1]; // DW_OP_dup
      return top !== undefined && stack.push(top) > 0;
    }
    case 0x23: {
      const top = stack.pop(); // DW_OP_plus_uconst
      const addend = reader.readUleb128();
      return top !== undefined && stack.push(plus(top, { constant: addend })) > 0;
    }
    case 0x92:
      return register(reader.readUleb128(), reader.readSleb128()); // DW_OP_bregx
    case 0x96:
      return true;
    default:
      return binary(op, stack);
  }
}

function plus(a: Term, b: Term): Term {
  if ('constant' in a) return 'constant' in b ? { constant: a.constant + b.constant } : plus(b, a);
  return 'constant' in b ? { value: addTo(a.value, b.constant) } : UNKNOWN_TERM;
}

function binary(op: number, stack: Term[]): boolean {
  const b = stack.pop();
  const a = stack.pop();
  if (a === undefined || b === undefined) return false;
  if (op === 0x22) return stack.push(plus(a, b)) > 0;
  if (!('constant' in b)) return false;
  if (op === 0x1c) return stack.push(plus(a, { constant: 0 - b.constant })) > 0;
  if (!('constant' in a)) return false;
  const result = constantOperation(op, a.constant, b.constant);
  return result !== undefined && stack.push({ constant: result }) > 0;
}

function constantOperation(op: number, a: number, b: number): number | undefined {
  const [x, y] = [BigInt(a), BigInt(b)];
  switch (op) {
    case 0x1a:
      return Number(BigInt.asIntN(64, x & y));
    case 0x1e:
      return a * b;
    case 0x21:
      return Number(BigInt.asIntN(64, x | y));
    case 0x24:
      return y >= 0n && y < 64n ? Number(BigInt.asIntN(64, x << y)) : 0;
    case 0x29:
      return Number(a === b);
    case 0x2a:
      return Number(a >= b);
    case 0x2b:
      return Number(a > b);
    case 0x2c:
      return Number(a <= b);
    case 0x2d:
      return Number(a < b);
    case 0x2e:
      return Number(a !== b);
    default:
      return undefined;
  }
}
