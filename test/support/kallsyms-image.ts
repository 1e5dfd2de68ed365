import { ByteWriter } from '../../src/base/byte-writer.js';

/** Kallsyms tables as `scripts/kallsyms.c` lays them out, in every layout that was published. */

export const KALLSYMS_BASE = -0x7f00_0000;
/** Where the tables lie themselves. */
export const KALLSYMS_TABLES = -0x7e00_0000;
const COUNT = 1500;

export interface KallsymsShape {
  readonly layout: '4.20' | '6.2' | '6.4' | '7.2';
  readonly addresses: 'absolute' | 'relative' | 'absolute-percpu' | 'place-relative';
  readonly alignment: 4 | 8;
  readonly longName?: boolean;
}

interface Symbol {
  readonly type: string;
  readonly name: string;
  readonly address: number;
}

/** Twelve per-CPU symbols from 0, the rest from the base up. */
export function kallsymsSymbols(shape: KallsymsShape): Symbol[] {
  return Array.from({ length: COUNT }, (_, i) => ({
    type: i % 3 === 0 ? 'T' : 't',
    name: i === 700 && shape.longName === true ? `very_${'long_'.repeat(60)}name` : `sys_fn_${i % 1400}`,
    address: i < 12 && shape.addresses.startsWith('absolute') ? 8 * i : KALLSYMS_BASE + 16 * i,
  }));
}

/** Lays the tables out as scripts/kallsyms.c does, compression included: two tokens stand for several characters. */
export function layOutKallsyms(shape: KallsymsShape): Uint8Array {
  const symbols = kallsymsSymbols(shape);
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
      else if (shape.addresses === 'relative') writer.writeU32(address - KALLSYMS_BASE);
      else if (shape.addresses === 'place-relative')
        writer.writeI32(address - (KALLSYMS_TABLES + writer.length));
      else writer.writeU32((address >= 0 ? address : KALLSYMS_BASE - 1 - address) >>> 0);
    }
    if (shape.addresses === 'absolute' || shape.addresses === 'place-relative') return;
    align();
    writer.writeU64(BigInt(KALLSYMS_BASE));
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
  const hasAddressesBehind = shape.layout === '6.4' || shape.layout === '7.2';
  if (!hasAddressesBehind) writeOffsets();
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
  if (hasAddressesBehind) {
    writeOffsets();
    writeSequences();
  }
  return writer.align(8).writeBytes(new TextEncoder().encode('text behind')).toBytes();
}

export const KALLSYMS_SHAPES: KallsymsShape[] = [
  { layout: '4.20', addresses: 'absolute-percpu', alignment: 8 },
  { layout: '4.20', addresses: 'relative', alignment: 8 },
  { layout: '4.20', addresses: 'absolute', alignment: 8 },
  { layout: '4.20', addresses: 'absolute-percpu', alignment: 8, longName: true },
  { layout: '6.2', addresses: 'absolute-percpu', alignment: 8 },
  { layout: '6.2', addresses: 'absolute', alignment: 8 },
  { layout: '6.4', addresses: 'absolute-percpu', alignment: 8, longName: true },
  { layout: '6.4', addresses: 'relative', alignment: 8 },
  { layout: '6.4', addresses: 'relative', alignment: 4 },
  { layout: '7.2', addresses: 'place-relative', alignment: 4, longName: true },
  { layout: '7.2', addresses: 'place-relative', alignment: 8 },
];
