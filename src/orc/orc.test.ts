import { describe, expect, it } from 'vitest';
import { ByteWriter } from '../base/byte-writer.js';
import { ParseError } from '../base/errors.js';
import { evaluateExpression } from '../dwarf/expression.js';
import { type OrcFormat, orcFormatOf } from './format.js';
import { parseOrc } from './table.js';

const [BP, SP, R10, BP_INDIRECT, SP_INDIRECT] = [4, 5, 6, 8, 9];
const PREV_SP = 1;

/** One entry: sp_offset, bp_offset, sp_reg, bp_reg, and the bits above them. */
type Entry = readonly [
  at: number,
  spOffset: number,
  bpOffset: number,
  spReg: number,
  bpReg: number,
  bits: number,
];

function table(format: OrcFormat, entries: readonly Entry[], address = 0x1000) {
  const [rows, ips] = [new ByteWriter(), new ByteWriter()];
  entries.forEach(([at, spOffset, bpOffset, spReg, bpReg, bits], i) => {
    rows.writeU16(spOffset & 0xffff).writeU16(bpOffset & 0xffff);
    rows.writeU16(spReg | (bpReg << 4) | (bits << 8));
    ips.writeI32(at - address - i * 4);
  });
  return parseOrc({
    entries: rows.toBytes(),
    ips: { bytes: ips.toBytes(), address },
    format,
    source: 'test',
  });
}

describe('parseOrc', () => {
  it('reads a call frame, and where the frame pointer was saved', () => {
    const row = table('6.4', [[0x10, 16, -16, SP, PREV_SP, 2]]).find(0x10);
    expect(row).toMatchObject({ start: 0x10, cfa: { register: 7, offset: 16 }, signalFrame: false });
    expect(row?.registers.get(16)).toEqual({ kind: 'offset', offset: -8 });
    expect(row?.registers.get(6)).toEqual({ kind: 'offset', offset: -16 });
    // r10 may be the base of a caller's row; a call frame does not bring it back.
    expect(row?.registers.get(10)).toEqual({ kind: 'undefined' });
  });

  it('knows registers by the numbers of 7.2', () => {
    // DI, DX and the indirect ones: what an entry says in 6.4, and the same in 7.2.
    const pairs: [old: number, renumbered: number][] = [
      ...([
        [BP, 4],
        [SP, 3],
        [R10, 6],
        [BP_INDIRECT, 10],
        [SP_INDIRECT, 9],
        [2, 2],
        [3, 5],
        [7, 7],
      ] as const),
    ].map(([old, renumbered]) => [old, renumbered]);
    for (const [old, renumbered] of pairs) {
      const expected = table('6.4', [[0, 16, -16, old, PREV_SP, 2]]).find(0);
      expect(expected).toBeDefined();
      expect(table('7.2', [[0, 16, -16, renumbered, 8, 2]]).find(0)).toEqual(expected);
    }
    const saved = table('6.4', [[0, 16, 8, SP, BP, 0xb]]).find(0);
    expect(table('7.2', [[0, 16, 8, 3, 4, 0xb]]).find(0)).toEqual(saved);
    for (const unknown of [1, 11, 15])
      expect(table('7.2', [[0, 16, 0, unknown, 0, 2]]).find(0)).toBeUndefined();
  });

  it('knows the end of the stack and unknown code of each format', () => {
    const ends: [OrcFormat, number, number][] = [
      ['4.18', 0x4, 0],
      ['5.12', 0x4, 0],
      ['6.3', 0x8, 0x4],
      ['6.4', 0x1, 0],
      ['7.2', 0x1, 0],
    ];
    for (const [format, end, unknown] of ends) {
      const orc = table(format, [
        [0, 0, 0, 0, 0, end],
        [8, 0, 0, 0, 0, unknown],
      ]);
      expect(orc.find(4)?.registers.get(16)).toEqual({ kind: 'undefined' });
      expect(orc.find(8)).toBeUndefined();
      expect(orc.find(-1)).toBeUndefined();
    }
    expect(table('4.14', [[0, 0, 0, 0, 0, 0]]).find(0)).toBeUndefined();
  });

  it('takes interrupted frames of registers from where they were pushed', () => {
    // Type REGS: 1 of the old formats, 3 since 6.4; the signal bit is 2 of 6.3 and 3 of 6.4.
    const formats: [OrcFormat, number][] = [
      ['4.14', 1],
      ['5.12', 1],
      ['6.3', 0x5],
      ['6.4', 0xb],
    ];
    for (const [format, bits] of formats) {
      const row = table(format, [[0, 8, 0, SP, 0, bits]]).find(0);
      expect(row).toMatchObject({ signalFrame: true, cfa: { register: 7, offset: 8 + 168 } });
      // offsetof(struct pt_regs): r15 0, rbp 32, rdi 112, ip 128, sp 152.
      for (const [register, at] of [
        [15, 0],
        [6, 32],
        [5, 112],
        [16, 128],
        [7, 152],
      ] as const) {
        expect(row?.registers.get(register)).toEqual({ kind: 'offset', offset: at - 168 });
      }
    }
    const partial = table('6.4', [[0, 0, -8, SP, PREV_SP, 0xc]]).find(0);
    expect(partial).toMatchObject({ signalFrame: true, cfa: { register: 7, offset: 40 } });
    expect(partial?.registers.get(16)).toEqual({ kind: 'offset', offset: -40 });
    expect(partial?.registers.get(6)).toEqual({ kind: 'offset', offset: -48 });
    // Since 6.3 a frame of registers need not be an interrupted one.
    expect(table('6.4', [[0, 0, 0, SP, 0, 3]]).find(0)?.signalFrame).toBe(false);
    expect(table('6.3', [[0, 0, 0, SP, 0, 1]]).find(0)?.signalFrame).toBe(false);
  });

  it('follows an indirect stack pointer as the kernel of its time does', () => {
    const memory = new Map([
      [0x100, 0x900],
      [0x110, 0xa00],
    ]);
    const cfa = (format: OrcFormat, register: number): number | undefined => {
      const rule = table(format, [[0, 16, 0, register, 0, format === '6.4' ? 2 : 0]]).find(0)?.cfa;
      if (rule?.kind !== 'expression') return undefined;
      const context = { register: () => 0x100, read64: (address: number) => memory.get(address) };
      return evaluateExpression(rule.expression, context, undefined);
    };
    expect(cfa('4.14', SP_INDIRECT)).toBe(0xa00);
    expect(cfa('4.18', SP_INDIRECT)).toBe(0xa00);
    expect(cfa('5.12', SP_INDIRECT)).toBe(0x900 + 16);
    expect(cfa('6.4', SP_INDIRECT)).toBe(0x900 + 16);
    expect(cfa('5.12', BP_INDIRECT)).toBe(0xa00);
    expect(table('5.12', [[0, 0, 0, R10, 0, 0]]).find(0)?.cfa).toEqual({
      kind: 'register',
      register: 10,
      offset: 0,
    });
  });

  it('sorts, and prefers real entries to the ends of sections', () => {
    const orc = table('6.4', [
      [0x20, 24, 0, SP, 0, 2],
      [0x10, 16, 0, SP, 0, 2],
      [0x10, 0, 0, 0, 0, 0],
      [0x20, 0, 0, 0, 0, 0],
    ]);
    expect([...orc.addresses]).toEqual([0x10, 0x10, 0x20, 0x20]);
    expect(orc.find(0x1f)).toMatchObject({ cfa: { offset: 16 }, start: 0x10, end: 0x20 });
    expect(orc.find(0x1000)?.cfa).toMatchObject({ offset: 24 });
  });

  it('claims nothing for registers and types that do not exist', () => {
    expect(table('6.4', [[0, 0, 0, 15, 0, 2]]).find(0)).toBeUndefined();
    expect(table('6.4', [[0, 0, 0, SP, BP_INDIRECT, 2]]).find(0)).toBeUndefined();
    expect(table('6.4', [[0, 0, 0, SP, 0, 5]]).find(0)).toBeUndefined();
    expect(table('5.12', [[0, 0, 0, SP, 0, 3]]).find(0)).toBeUndefined();
    expect(
      table('5.12', [[0, 0, 0, BP, BP, 0]])
        .find(0)
        ?.registers.get(6)?.kind,
    ).toBe('expression');
  });
});

describe('orcFormatOf', () => {
  it('goes by the kernel release, or the header where there is one', () => {
    const of = (kernelRelease: string) => orcFormatOf({ kernelRelease }, 'k');
    expect(
      ['4.14.336', '4.17', '4.18.0', '5.11', '5.12-rc1', '6.1.0-50-cloud-amd64', '6.3', '6.4.1', '7.0'].map(
        of,
      ),
    ).toEqual(['4.14', '4.14', '4.18', '4.18', '5.12', '5.12', '6.3', '6.4', '6.4']);
    expect(() => of('4.13')).toThrow(ParseError);
    expect(() => of('')).toThrow(/unknown/);
    const header = Uint8Array.from(Buffer.from('db84aed4103b31dd51e017f8f79783ca985c2c51', 'hex'));
    expect(orcFormatOf({ header, kernelRelease: '6.6' }, 'k')).toBe('6.3');
    expect(() => orcFormatOf({ header: Uint8Array.of(1), kernelRelease: '6.6' }, 'k')).toThrow(
      /unknown ORC format/,
    );
  });
});
