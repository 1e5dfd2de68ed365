import { describe, expect, it } from 'vitest';
import {
  KALLSYMS_BASE,
  KALLSYMS_SHAPES,
  KALLSYMS_TABLES,
  type KallsymsShape,
  kallsymsSymbols,
  layOutKallsyms,
} from '../../test/support/kallsyms-image.js';
import { parseKallsyms } from './kallsyms.js';
import { KernelSymbolTable } from './symbol-table.js';

describe('parseKallsyms', () => {
  it.each(KALLSYMS_SHAPES)('reads $layout with $addresses addresses, aligned to $alignment', (shape) => {
    const found = parseKallsyms(layOutKallsyms(shape), KALLSYMS_TABLES, 'made');
    const symbols = kallsymsSymbols(shape);
    expect(found.layout).toBe(shape.layout);
    expect(found.names).toEqual(symbols.map((s) => s.name));
    expect(found.types).toBe(symbols.map((s) => s.type).join(''));
    expect([...found.addresses]).toEqual(symbols.map((s) => s.address));
  });

  it('says that a file without tables has none', () => {
    expect(() => parseKallsyms(new Uint8Array(5000), KALLSYMS_TABLES, 'zeros')).toThrow(
      'no kallsyms token table',
    );
  });

  it('gives up on bytes that look like tables everywhere', () => {
    const shape = KALLSYMS_SHAPES.find(({ layout }) => layout === '4.20') as KallsymsShape;
    const made = layOutKallsyms(shape);
    // Markers all over, with counts that fit them, and names of two bytes in between.
    const markers = Uint32Array.from(
      { length: 2 ** 18 },
      (_, i) => [0, 512, 1024, 1536, 1100, 1100, 1100, 1100][i % 8] as number,
    );
    // Its token table stays, its names can't be found.
    const numSyms = kallsymsSymbols(shape).length;
    const view = new DataView(made.buffer, made.byteOffset, made.length);
    for (let at = 0; at + 4 <= made.length; at += 4)
      if (view.getUint32(at, true) === numSyms) view.setUint32(at, 0, true);
    const crafted = Buffer.concat([new Uint8Array(markers.buffer), made]);
    expect(() => parseKallsyms(crafted, KALLSYMS_TABLES, 'crafted')).toThrow('a layout that is not known');
    const digits = new Uint8Array(2 ** 21).map((_, i) => (i % 2 === 0 ? 0x30 + ((i / 2) % 10) : 0));
    expect(() => parseKallsyms(digits, KALLSYMS_TABLES, 'digits')).toThrow('no kallsyms token table');
  });
});

describe('KernelSymbolTable', () => {
  const shape = KALLSYMS_SHAPES[0] as KallsymsShape;
  const { names, types, addresses } = parseKallsyms(layOutKallsyms(shape), KALLSYMS_TABLES, 'made');
  const table = new KernelSymbolTable(names, types, addresses);

  it('finds same-named symbols in the order of sympos', () => {
    expect(table.findAll('sys_fn_20').map((s) => s.address)).toEqual([
      KALLSYMS_BASE + 320,
      KALLSYMS_BASE + 16 * 1420,
    ]);
    expect(table.findUnique('sys_fn_20')).toBeUndefined();
    expect(table.findUnique('sys_fn_500')).toMatchObject({ address: KALLSYMS_BASE + 8000, sizeBytes: 16 });
  });

  it('finds what covers an address, per-CPU symbols included', () => {
    expect(table.findCovering(KALLSYMS_BASE + 8007)?.name).toBe('sys_fn_500');
    expect(table.findCovering(9)?.name).toBe('sys_fn_1');
    expect(table.findCovering(KALLSYMS_BASE - 2 ** 30)?.name).toBe('sys_fn_11');
    expect(new KernelSymbolTable([], '', new Float64Array()).findCovering(5)).toBeUndefined();
  });
});
