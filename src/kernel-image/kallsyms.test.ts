import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ByteWriter } from '../base/byte-writer.js';
import { ParseError } from '../base/errors.js';
import { parseKallsyms } from './kallsyms.js';
import { KernelSymbolTable } from './symbol-table.js';

const BASE = -0x7f00_0000;
const COUNT = 1500;

interface Shape {
  readonly layout: '4.20' | '6.2' | '6.4';
  readonly addresses: 'absolute' | 'relative' | 'absolute-percpu';
  readonly alignment: 4 | 8;
  readonly longName?: boolean;
}

interface Symbol {
  readonly type: string;
  readonly name: string;
  readonly address: number;
}

/** Twelve per-CPU symbols from 0, the rest from the base up. */
function symbolsOf(shape: Shape): Symbol[] {
  return Array.from({ length: COUNT }, (_, i) => ({
    type: i % 3 === 0 ? 'T' : 't',
    name: i === 700 && shape.longName === true ? `very_${'long_'.repeat(60)}name` : `sys_fn_${i % 1400}`,
    address: i < 12 && shape.addresses !== 'relative' ? 8 * i : BASE + 16 * i,
  }));
}

/** Lays the tables out as scripts/kallsyms.c does, compression included: two tokens stand for several characters. */
function layOut(shape: Shape): Uint8Array {
  const symbols = symbolsOf(shape);
  const tokens = Array.from({ length: 256 }, (_, i) => (i >= 0x30 && i < 0x7b ? String.fromCharCode(i) : ''));
  tokens[0] = 'sys_';
  tokens[255] = 'fn_';
  const writer = new ByteWriter(2 ** 17);
  writer.writeBytes(new TextEncoder().encode('some text before 0123456789')).align(64);
  const align = () => writer.align(shape.alignment);
  const writeOffsets = () => {
    align();
    for (const { address } of symbols) {
      if (shape.addresses === 'absolute') writer.writeU64(BigInt(address));
      else if (shape.addresses === 'relative') writer.writeU32(address - BASE);
      else writer.writeU32((address >= 0 ? address : BASE - 1 - address) >>> 0);
    }
    if (shape.addresses === 'absolute') return;
    align();
    writer.writeU64(BigInt(BASE));
  };
  const writeSequences = () => {
    align();
    for (let i = 0; i < COUNT; i++)
      writer
        .writeU8(0)
        .writeU8(i >> 8)
        .writeU8(i & 0xff);
  };
  const writeTokens = () => {
    align();
    const start = writer.toBytes().length;
    const index = tokens.map((token) => {
      const at = writer.toBytes().length - start;
      writer.writeCString(token);
      return at;
    });
    align();
    for (const at of index) writer.writeU16(at);
  };
  if (shape.layout !== '6.4') writeOffsets();
  align();
  writer.writeU32(COUNT);
  align();
  const names = writer.toBytes().length;
  const markers: number[] = [];
  symbols.forEach(({ type, name }, i) => {
    if (i % 256 === 0) markers.push(writer.toBytes().length - names);
    const text = `${type}${name}`.replace('sys_', '\0').replace('fn_', '\xff');
    if (text.length > 0x7f) writer.writeU8((text.length & 0x7f) | 0x80).writeU8(text.length >> 7);
    else writer.writeU8(text.length);
    for (let j = 0; j < text.length; j++) writer.writeU8(text.charCodeAt(j));
  });
  align();
  for (const marker of markers) writer.writeU32(marker);
  if (shape.layout === '6.2') writeSequences();
  writeTokens();
  if (shape.layout === '6.4') {
    writeOffsets();
    writeSequences();
  }
  return writer.align(8).writeBytes(new TextEncoder().encode('text behind')).toBytes();
}

const SHAPES: Shape[] = [
  { layout: '4.20', addresses: 'absolute-percpu', alignment: 8 },
  { layout: '4.20', addresses: 'relative', alignment: 8 },
  { layout: '4.20', addresses: 'absolute', alignment: 8 },
  { layout: '4.20', addresses: 'absolute-percpu', alignment: 8, longName: true },
  { layout: '6.2', addresses: 'absolute-percpu', alignment: 8 },
  { layout: '6.2', addresses: 'absolute', alignment: 8 },
  { layout: '6.4', addresses: 'absolute-percpu', alignment: 8, longName: true },
  { layout: '6.4', addresses: 'relative', alignment: 8 },
  { layout: '6.4', addresses: 'relative', alignment: 4 },
];

describe('parseKallsyms', () => {
  it.each(SHAPES)('reads $layout with $addresses addresses, aligned to $alignment', (shape) => {
    const found = parseKallsyms(layOut(shape), 'made');
    const symbols = symbolsOf(shape);
    expect(found.layout).toBe(shape.layout);
    expect(found.names).toEqual(symbols.map((s) => s.name));
    expect(found.types).toBe(symbols.map((s) => s.type).join(''));
    expect([...found.addresses]).toEqual(symbols.map((s) => s.address));
  });

  it('says that a file without tables has none', () => {
    expect(() => parseKallsyms(new Uint8Array(5000), 'zeros')).toThrow('no kallsyms token table');
  });

  it('throws a ParseError, or gives symbols, whatever the bytes', () => {
    const bytes = layOut(SHAPES[0] as Shape);
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.nat(255), fc.nat(bytes.length), (at, value, cut) => {
        const damaged = bytes.slice(0, cut % 2 === 0 ? cut : undefined);
        if (at < damaged.length) damaged[at] = value;
        try {
          parseKallsyms(damaged, 'damaged');
        } catch (error) {
          if (!(error instanceof ParseError)) throw error;
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe('KernelSymbolTable', () => {
  const shape = SHAPES[0] as Shape;
  const { names, types, addresses } = parseKallsyms(layOut(shape), 'made');
  const table = new KernelSymbolTable(names, types, addresses);

  it('finds same-named symbols in the order of sympos', () => {
    expect(table.findAll('sys_fn_20').map((s) => s.address)).toEqual([BASE + 320, BASE + 16 * 1420]);
    expect(table.findUnique('sys_fn_20')).toBeUndefined();
    expect(table.findUnique('sys_fn_500')).toMatchObject({ address: BASE + 8000, sizeBytes: 16 });
  });

  it('finds what covers an address, per-CPU symbols included', () => {
    expect(table.findCovering(BASE + 8007)?.name).toBe('sys_fn_500');
    expect(table.findCovering(9)?.name).toBe('sys_fn_1');
    expect(table.findCovering(BASE - 2 ** 30)?.name).toBe('sys_fn_11');
    expect(new KernelSymbolTable([], '', new Float64Array()).findCovering(5)).toBeUndefined();
  });
});
