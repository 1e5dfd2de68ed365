import { isExactAddress } from '../base/brand.js';
import { ByteReader } from '../base/byte-reader.js';

/** What an expression of a CFI row may look at. Each answers undefined for what is not known. */
export interface ExpressionContext {
  register(number: number): number | undefined;
  /** The 8 bytes at an address of the target. */
  read64(address: number): number | undefined;
}

const MAX_STEPS = 1000;
const MAX_DEPTH = 256;

/**
 * Evaluates a DWARF expression as CFI uses them (DWARF 5 section 2.5; operations on registers, constants, memory and
 * arithmetic, all of 64 bits). Undefined when it can't be evaluated, never a guess.
 */
export function evaluateExpression(
  expression: Uint8Array,
  context: ExpressionContext,
  initial: number | undefined,
): number | undefined {
  const machine = new ExpressionMachine(new ByteReader(expression, 'DWARF expression'), context);
  if (initial !== undefined) machine.stack.push(BigInt(initial));
  try {
    for (let steps = 0; !machine.reader.atEnd; steps++) {
      if (steps > MAX_STEPS || machine.stack.length > MAX_DEPTH || !machine.step()) return undefined;
    }
  } catch {
    return undefined;
  }
  const top = machine.stack.pop();
  const result = top === undefined ? Number.NaN : Number(BigInt.asIntN(64, top));
  return isExactAddress(result) ? result : undefined;
}

class ExpressionMachine {
  readonly reader: ByteReader;
  /** Signed 64-bit values. */
  readonly stack: bigint[] = [];
  readonly #context: ExpressionContext;

  constructor(reader: ByteReader, context: ExpressionContext) {
    this.reader = reader;
    this.#context = context;
  }

  /** Executes one operation; false when it can't be. */
  step(): boolean {
    const { reader, stack } = this;
    const op = reader.readU8();
    if (op >= 0x30 && op <= 0x4f) return this.#push(op - 0x30); // DW_OP_lit
    if (op >= 0x70 && op <= 0x8f) return this.#pushRegister(op - 0x70); // DW_OP_breg
    switch (op) {
      case 0x03: // DW_OP_addr
      case 0x0e:
      case 0x0f:
        return this.#push(reader.readI64());
      case 0x06: // DW_OP_deref
        return this.#dereference(8);
      case 0x08:
        return this.#push(reader.readU8());
      case 0x09:
        return this.#push(reader.readI8());
      case 0x0a:
        return this.#push(reader.readU16());
      case 0x0b:
        return this.#push(reader.readI16());
      case 0x0c:
        return this.#push(reader.readU32());
      case 0x0d:
        return this.#push(reader.readI32());
      case 0x10:
        return this.#push(reader.readUleb128());
      case 0x11:
        return this.#push(reader.readSleb128());
      case 0x12: // DW_OP_dup
        return this.#push(stack[stack.length - 1]);
      case 0x13: // DW_OP_drop
        return stack.pop() !== undefined;
      case 0x14: // DW_OP_over
        return this.#push(stack[stack.length - 2]);
      case 0x15: // DW_OP_pick
        return this.#push(stack[stack.length - 1 - reader.readU8()]);
      case 0x16: // DW_OP_swap
        return this.#rotate(2);
      case 0x17: // DW_OP_rot
        return this.#rotate(3);
      case 0x23: {
        const top = stack.pop(); // DW_OP_plus_uconst
        const addend = reader.readUleb128();
        return top !== undefined && this.#push(top + BigInt(addend));
      }
      case 0x28: {
        const condition = stack.pop(); // DW_OP_bra
        const distance = reader.readI16();
        if (condition === undefined) return false;
        if (condition !== 0n) reader.skip(distance);
        return true;
      }
      case 0x2f:
        reader.skip(reader.readI16()); // DW_OP_skip
        return true;
      case 0x92: // DW_OP_bregx
        return this.#pushRegister(reader.readUleb128());
      case 0x94: {
        const size = reader.readU8(); // DW_OP_deref_size
        return size >= 1 && size <= 8 && this.#dereference(size);
      }
      case 0x96: // DW_OP_nop
        return true;
      default:
        return this.#arithmetic(op);
    }
  }

  #push(value: bigint | number | boolean | undefined): boolean {
    if (value === undefined) return false;
    this.stack.push(BigInt.asIntN(64, BigInt(value)));
    return true;
  }

  #pushRegister(number: number): boolean {
    const value = this.#context.register(number);
    const offset = this.reader.readSleb128();
    return value !== undefined && this.#push(BigInt(value) + BigInt(offset));
  }

  #dereference(sizeBytes: number): boolean {
    const address = this.stack.pop();
    if (address === undefined) return false;
    const value = this.#context.read64(Number(address));
    if (value === undefined || !isExactAddress(value)) return false;
    return this.#push(sizeBytes === 8 ? value : BigInt.asUintN(8 * sizeBytes, BigInt(value)));
  }

  /** The top entry goes below the next `count - 1`. */
  #rotate(count: number): boolean {
    const { stack } = this;
    const top = stack[stack.length - 1];
    if (top === undefined || stack.length < count) return false;
    stack.pop();
    stack.splice(stack.length - (count - 1), 0, top);
    return true;
  }

  #arithmetic(op: number): boolean {
    const b = this.stack.pop();
    if (b === undefined) return false;
    switch (op) {
      case 0x19: // DW_OP_abs
        return this.#push(b < 0n ? -b : b);
      case 0x1f: // DW_OP_neg
        return this.#push(-b);
      case 0x20: // DW_OP_not
        return this.#push(~b);
    }
    const a = this.stack.pop();
    return a !== undefined && this.#push(binary(op, a, b));
  }
}

function binary(op: number, a: bigint, b: bigint): bigint | boolean | undefined {
  const unsigned = (value: bigint) => BigInt.asUintN(64, value);
  switch (op) {
    case 0x1a:
      return a & b;
    case 0x1b: // DW_OP_div is signed, DW_OP_mod unsigned (as libgcc, gdb and elfutils have it)
      return b === 0n ? undefined : a / b;
    case 0x1c:
      return a - b;
    case 0x1d:
      return b === 0n ? undefined : unsigned(a) % unsigned(b);
    case 0x1e:
      return a * b;
    case 0x21:
      return a | b;
    case 0x22:
      return a + b;
    case 0x24:
      return unsigned(b) < 64n ? a << b : 0n;
    case 0x25:
      return unsigned(b) < 64n ? unsigned(a) >> b : 0n;
    case 0x26:
      return a >> (unsigned(b) < 64n ? b : 63n);
    case 0x27:
      return a ^ b;
    case 0x29:
      return a === b;
    case 0x2a:
      return a >= b;
    case 0x2b:
      return a > b;
    case 0x2c:
      return a <= b;
    case 0x2d:
      return a < b;
    case 0x2e:
      return a !== b;
    default:
      return undefined;
  }
}
