import { ByteReader } from '../base/byte-reader.js';

/** What an expression of a CFI row may look at. Each answers undefined for what is not known. */
export interface ExpressionContext {
  register(number: number): number | undefined;
  /** The 8 bytes at an address of the target. */
  read64(address: number): number | undefined;
}

const MAX_STEPS = 1000;

/**
 * Evaluates a DWARF expression as CFI uses them (DWARF 5 section 2.5; operations on registers, constants, memory and
 * arithmetic). Undefined when it can't be evaluated, never a guess.
 */
export function evaluateExpression(
  expression: Uint8Array,
  context: ExpressionContext,
  initial: number | undefined,
): number | undefined {
  const reader = new ByteReader(expression, 'DWARF expression');
  const stack: number[] = initial === undefined ? [] : [initial];
  try {
    for (let steps = 0; !reader.atEnd; steps++) {
      if (steps > MAX_STEPS || !step(reader, stack, context)) return undefined;
    }
  } catch {
    return undefined;
  }
  const top = stack.pop();
  return top !== undefined && Number.isSafeInteger(top) ? top : undefined;
}

function step(reader: ByteReader, stack: number[], context: ExpressionContext): boolean {
  const op = reader.readU8();
  const push = (value: number | undefined): boolean => {
    if (value === undefined) return false;
    stack.push(value);
    return true;
  };
  const binary = (apply: (a: number, b: number) => number | undefined): boolean => {
    const b = stack.pop();
    const a = stack.pop();
    return a !== undefined && b !== undefined && push(apply(a, b));
  };
  const compare = (test: (a: number, b: number) => boolean) => binary((a, b) => (test(a, b) ? 1 : 0));
  const big = (apply: (a: bigint, b: bigint) => bigint) =>
    binary((a, b) => Number(BigInt.asIntN(64, apply(BigInt(a), BigInt(b)))));
  if (op >= 0x30 && op <= 0x4f) return push(op - 0x30); // DW_OP_lit
  if (op >= 0x70 && op <= 0x8f) {
    const register = context.register(op - 0x70); // DW_OP_breg
    const offset = reader.readSleb128();
    return register !== undefined && push(register + offset);
  }
  switch (op) {
    case 0x03:
      return push(reader.readAddress());
    case 0x06: {
      const address = stack.pop(); // DW_OP_deref
      return address !== undefined && push(context.read64(address));
    }
    case 0x08:
      return push(reader.readU8());
    case 0x09:
      return push(reader.readI8());
    case 0x0a:
      return push(reader.readU16());
    case 0x0b:
      return push(reader.readI16());
    case 0x0c:
      return push(reader.readU32());
    case 0x0d:
      return push(reader.readI32());
    case 0x0e:
    case 0x0f:
      return push(reader.readAddress());
    case 0x10:
      return push(reader.readUleb128());
    case 0x11:
      return push(reader.readSleb128());
    case 0x12:
      return push(stack[stack.length - 1]);
    case 0x13:
      return stack.pop() !== undefined;
    case 0x14:
      return push(stack[stack.length - 2]);
    case 0x15:
      return push(stack[stack.length - 1 - reader.readU8()]);
    case 0x16: {
      const [a, b] = [stack.pop(), stack.pop()];
      return a !== undefined && b !== undefined && push(a) && push(b);
    }
    case 0x1a:
      return big((a, b) => a & b);
    case 0x1c:
      return binary((a, b) => a - b);
    case 0x1e:
      return big((a, b) => a * b);
    case 0x1f:
      return push(negate(stack.pop()));
    case 0x21:
      return big((a, b) => a | b);
    case 0x22:
      return binary((a, b) => a + b);
    case 0x23: {
      const top = stack.pop(); // DW_OP_plus_uconst
      const addend = reader.readUleb128();
      return top !== undefined && push(top + addend);
    }
    case 0x24:
      return big((a, b) => (b < 64n && b >= 0n ? a << b : 0n));
    case 0x25:
      return big((a, b) => (b < 64n && b >= 0n ? BigInt.asUintN(64, a) >> b : 0n));
    case 0x26:
      return big((a, b) => a >> (b < 64n && b >= 0n ? b : 63n));
    case 0x27:
      return big((a, b) => a ^ b);
    case 0x28: {
      const condition = stack.pop(); // DW_OP_bra
      const distance = reader.readI16();
      if (condition === undefined) return false;
      if (condition !== 0) reader.skip(distance);
      return true;
    }
    case 0x29:
      return compare((a, b) => a === b);
    case 0x2a:
      return compare((a, b) => a >= b);
    case 0x2b:
      return compare((a, b) => a > b);
    case 0x2c:
      return compare((a, b) => a <= b);
    case 0x2d:
      return compare((a, b) => a < b);
    case 0x2e:
      return compare((a, b) => a !== b);
    case 0x2f:
      reader.skip(reader.readI16()); // DW_OP_skip
      return true;
    case 0x92: {
      const register = context.register(reader.readUleb128()); // DW_OP_bregx
      const offset = reader.readSleb128();
      return register !== undefined && push(register + offset);
    }
    case 0x96:
      return true;
    default:
      return false;
  }
}

function negate(value: number | undefined): number | undefined {
  return value === undefined ? undefined : -value;
}
