import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type ExpressionContext, evaluateExpression } from './expression.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-expression-'));
afterAll(() => rmSync(folder, { recursive: true }));

const OP = {
  addr: 0x03,
  deref: 0x06,
  const1u: 0x08,
  const1s: 0x09,
  const2u: 0x0a,
  const2s: 0x0b,
  const4u: 0x0c,
  const4s: 0x0d,
  const8u: 0x0e,
  const8s: 0x0f,
  constu: 0x10,
  consts: 0x11,
  dup: 0x12,
  drop: 0x13,
  over: 0x14,
  pick: 0x15,
  swap: 0x16,
  rot: 0x17,
  abs: 0x19,
  and: 0x1a,
  div: 0x1b,
  minus: 0x1c,
  mod: 0x1d,
  mul: 0x1e,
  neg: 0x1f,
  not: 0x20,
  or: 0x21,
  plus: 0x22,
  plusUconst: 0x23,
  shl: 0x24,
  shr: 0x25,
  shra: 0x26,
  xor: 0x27,
  bra: 0x28,
  eq: 0x29,
  ge: 0x2a,
  gt: 0x2b,
  le: 0x2c,
  lt: 0x2d,
  ne: 0x2e,
  skip: 0x2f,
  lit0: 0x30,
  breg12: 0x7c,
  bregx: 0x92,
  derefSize: 0x94,
  nop: 0x96,
} as const;

const le = (value: number | bigint, size: number) =>
  Array.from({ length: size }, (_, i) =>
    Number((BigInt.asUintN(64, BigInt(value)) >> BigInt(8 * i)) & 0xffn),
  );
const lit = (n: number) => OP.lit0 + n;
const s8 = (n: number) => [OP.const8s, ...le(n, 8)];

/** Each operation, with operands that tell signed from unsigned and one order from the other. */
const EXPRESSIONS: readonly (readonly number[])[] = [
  [lit(0)],
  [lit(31)],
  [OP.addr, ...le(0x123456789a, 8)],
  [OP.const1u, 0xfe],
  [OP.const1s, 0xfe],
  [OP.const2u, 0x34, 0xf2],
  [OP.const2s, 0x34, 0xf2],
  [OP.const4u, ...le(0xfedcba98, 4)],
  [OP.const4s, ...le(0xfedcba98, 4)],
  [OP.const8u, ...le(0x1122334455667, 8)],
  s8(-77),
  [OP.constu, 0xe5, 0x8e, 0x26],
  [OP.consts, 0x9b, 0xf1, 0x59],
  [lit(7), OP.dup, OP.mul],
  [lit(7), lit(9), OP.drop],
  [lit(7), lit(9), OP.over, OP.minus],
  [lit(3), lit(5), lit(8), OP.pick, 2, OP.minus],
  [lit(3), lit(5), OP.swap, OP.minus],
  // What rot leaves, read as three digits.
  [lit(1), lit(2), lit(3), OP.rot, lit(10), OP.mul, OP.plus, lit(10), OP.mul, OP.plus],
  [...s8(-9), OP.abs],
  [lit(9), OP.abs],
  [...s8(-256), OP.const2u, 0xff, 0x0f, OP.and],
  [...s8(-7), lit(2), OP.div],
  [lit(7), ...s8(-2), OP.div],
  [lit(17), lit(5), OP.mod],
  [...s8(-7), lit(10), OP.mod],
  [...s8(-7), lit(10), OP.mul],
  [lit(9), OP.neg],
  [lit(9), OP.not],
  [lit(9), lit(16), OP.or],
  [...s8(-1), lit(2), OP.plus],
  [...s8(-100), OP.plusUconst, 0x80, 0x02],
  [lit(5), lit(20), OP.shl],
  [...s8(-5), lit(20), OP.shr],
  [...s8(-5), lit(1), OP.shra],
  [lit(9), lit(3), OP.xor],
  [...s8(-1), lit(1), OP.lt],
  [...s8(-1), lit(1), OP.gt],
  [lit(1), lit(1), OP.ge],
  [lit(1), lit(1), OP.le],
  [lit(1), lit(1), OP.eq],
  [lit(1), lit(2), OP.ne],
  [lit(1), lit(1), OP.ne],
  [lit(1), OP.bra, 1, 0, lit(5), OP.nop, lit(6)],
  [lit(4), lit(0), OP.bra, 1, 0, lit(5), lit(6), OP.minus],
  [lit(5), OP.skip, 1, 0, lit(6), OP.nop],
  // A loop: 5 * 4 * 3 * 2 * 1, by a branch backwards.
  [lit(1), lit(5), OP.dup, OP.rot, OP.mul, OP.swap, lit(1), OP.minus, OP.dup, OP.bra, ...le(-10, 2), OP.drop],
  [OP.breg12, 0x70],
  [OP.bregx, 12, 0x10],
  [OP.breg12, 0, OP.deref],
  [OP.breg12, 0, OP.derefSize, 1],
  [OP.breg12, 1, OP.derefSize, 2],
  [OP.breg12, 2, OP.derefSize, 4],
  [OP.breg12, 0, OP.derefSize, 8],
  // What signal trampolines and PLT entries say.
  [OP.breg12, 0x08, OP.plusUconst, 0x10],
  [OP.breg12, 0, lit(15), OP.and, lit(11), OP.ge, lit(3), OP.shl, OP.breg12, 8, OP.plus],
];

/** The 8 bytes that r12 points at in both worlds. */
const MEMORY = 0x0001e2d3c4b5a697n;

/**
 * GCC's unwinder evaluates the same expressions: each is the rule of rbx in a function whose caller it unwinds to.
 * r12 holds the address of {@link MEMORY} there, which is subtracted when it is in the result.
 */
function unwinderResults(): { readonly base: bigint; readonly values: readonly bigint[] } {
  const functions = EXPRESSIONS.map((bytes, i) => {
    const rule = [0x16, 3, bytes.length, ...bytes];
    return `f${i}:
  .cfi_startproc
  push %r12
  .cfi_def_cfa_offset 16
  .cfi_offset r12, -16
  lea memory(%rip), %r12
  .cfi_escape ${rule.join(',')}
  call look
  pop %r12
  .cfi_def_cfa_offset 8
  .cfi_restore r12
  ret
  .cfi_endproc`;
  });
  writeFileSync(
    join(folder, 'rules.s'),
    `.data\n.globl memory\nmemory: .quad ${MEMORY}\n.text\n${functions.join('\n')}
.section .data.rel.ro,"aw"\n.globl functions\nfunctions:\n${EXPRESSIONS.map((_, i) => `.quad f${i}`).join('\n')}
.section .note.GNU-stack,"",@progbits\n`,
  );
  // f's own r12 is what its expressions see: DW_OP_breg reads the registers of the frame that has the rule.
  writeFileSync(
    join(folder, 'look.c'),
    `#include <stdio.h>
#include <unwind.h>
extern void (*functions[])(void);
extern long memory;
static _Unwind_Reason_Code visit(struct _Unwind_Context *context, void *depth) {
  if (++*(int *)depth < 3) return _URC_NO_REASON;
  printf("%ld\\n", (long)_Unwind_GetGR(context, 3));
  return _URC_END_OF_STACK;
}
void look(void) { int depth = 0; _Unwind_Backtrace(visit, &depth); }
int main(void) {
  printf("%ld\\n", (long)&memory);
  for (int i = 0; i < ${EXPRESSIONS.length}; i++) functions[i]();
  return 0;
}
`,
  );
  const gcc = spawnSync('gcc', ['-O1', '-o', 'look', 'look.c', 'rules.s'], { cwd: folder, encoding: 'utf8' });
  if (gcc.status !== 0) throw new Error(gcc.stderr);
  const { stdout, status } = spawnSync(join(folder, 'look'), { encoding: 'utf8' });
  if (status !== 0) throw new Error(`look ended with ${status}`);
  const [base = 0n, ...values] = stdout.trim().split('\n').map(BigInt);
  return { base, values };
}

describe('evaluateExpression', () => {
  it("yields what GCC's unwinder yields, for every operation", () => {
    const { base, values } = unwinderResults();
    expect(values).toHaveLength(EXPRESSIONS.length);
    const address = Number(base);
    const context: ExpressionContext = {
      register: (number) => (number === 12 ? address : undefined),
      read64: (at) => {
        const shift = at - address;
        return shift >= 0 && shift < 8 ? Number(MEMORY >> BigInt(8 * shift)) : undefined;
      },
    };
    // The unwinder pushes the CFA first; none of these looks at it.
    const results = EXPRESSIONS.map((bytes) =>
      evaluateExpression(Uint8Array.from(bytes), context, 0x7fff0000),
    );
    expect(results.map((value, i) => [EXPRESSIONS[i], value])).toEqual(
      values.map((value, i) => [EXPRESSIONS[i], Number(value)]),
    );
  });

  const nothing: ExpressionContext = { register: () => undefined, read64: () => undefined };
  it.each([
    ['nothing on the stack', []],
    ['a register that is not known', [OP.breg12, 0]],
    ['memory that can not be read', [lit(8), OP.deref]],
    ['a division by zero', [lit(8), lit(0), OP.div]],
    ['an operand that is missing', [lit(8), OP.plus]],
    ['an operation that is cut off', [OP.const4u, 1, 2]],
    ['a jump out of the expression', [OP.skip, 100, 0]],
    ['a loop without an end', [OP.skip, ...le(-3, 2)]],
    ['a stack without an end', [lit(1), OP.skip, ...le(-4, 2)]],
    ['an operation of no meaning here', [0x9c]],
    ['a value that a number can not hold', [OP.const8u, ...le(2n ** 62n + 1n, 8)]],
  ])('answers undefined, never a guess: %s', (_, bytes) => {
    expect(evaluateExpression(Uint8Array.from(bytes), nothing, undefined)).toBeUndefined();
  });

  it('calculates in 64 bits, whatever a number holds', () => {
    // (2^63 - 1) + 2, and its product with itself, wrap.
    const large = [OP.const8u, ...le(2n ** 63n - 1n, 8)];
    const wrapped = [...large, lit(2), OP.plus, ...large, OP.plus];
    expect(evaluateExpression(Uint8Array.from(wrapped), nothing, undefined)).toBe(0);
    expect(evaluateExpression(Uint8Array.from([...large, OP.dup, OP.mul]), nothing, undefined)).toBe(1);
  });
});
