import { describe, expect, it } from 'vitest';
import type { Patch, PatchSection } from '../../patch/content.js';
import { layoutPatch } from '../../patch/layout.js';
import { applyAlternatives, hasAlternatives } from './kernel-alternatives.js';

const section = (name: string, kind: PatchSection['kind'], data: readonly number[]): PatchSection => ({
  name,
  kind,
  alignment: 1,
  data: Uint8Array.from(data),
  sizeBytes: data.length,
  relocations: [],
});

/** Code of seven bytes; what takes its place; one entry. Distances are filled in for the layout. */
function image(replacement: readonly number[], feature: number, length = 7) {
  const patch = {
    manifest: {},
    symbols: [],
    id: '',
    sections: [
      section('.text.f', 'text', [0xc3, 1, 2, 3, 4, 5, 6, 7, 0xc3]),
      section('.rodata.replacement', 'readOnly', replacement),
      section('.livegraft.alternatives.0', 'readOnly', new Array(12).fill(0)),
    ],
  } as unknown as Patch;
  const layout = layoutPatch(patch, 0);
  const bytes = new Uint8Array(layout.sizeBytes);
  patch.sections.forEach((each, index) => {
    bytes.set(each.data, layout.sectionOffsets[index]);
  });
  const [text, repl, table] = layout.sectionOffsets as [number, number, number];
  const view = new DataView(bytes.buffer);
  view.setInt32(table, text + 1 - table, true);
  view.setInt32(table + 4, repl - (table + 4), true);
  view.setUint16(table + 8, feature, true);
  view.setUint8(table + 10, length);
  view.setUint8(table + 11, replacement.length);
  const apply = (...features: number[]) =>
    applyAlternatives({ bytes, base: 0, functions: [] }, patch, layout, Uint32Array.from(features));
  return { patch, apply, code: () => [...bytes.subarray(text, text + 9)], view, text, repl };
}

const UNTOUCHED = [0xc3, 1, 2, 3, 4, 5, 6, 7, 0xc3];

describe('applyAlternatives', () => {
  it('takes the replacement where the CPU has the feature, and fills up with nops', () => {
    const made = image([0x0f, 0x01, 0xcb], 33);
    expect(hasAlternatives(made.patch)).toBe(true);
    made.apply(0, 1);
    expect(made.code()).toEqual(UNTOUCHED);
    made.apply(0, 2);
    expect(made.code()).toEqual([0xc3, 0x0f, 0x01, 0xcb, 0x0f, 0x1f, 0x40, 0x00, 0xc3]);
  });

  it('turns the question round where the feature must be missing', () => {
    const made = image([], 0x8000 | 5);
    made.apply(1 << 5);
    expect(made.code()).toEqual(UNTOUCHED);
    made.apply(0);
    expect(made.code()).toEqual([0xc3, 0x0f, 0x1f, 0x80, 0, 0, 0, 0, 0xc3]);
  });

  it('lets calls and jumps lead to where they led', () => {
    const made = image([0xe8, 0, 0, 0, 0], 0);
    made.view.setInt32(made.repl + 1, 100, true);
    made.apply(1);
    const before = made.repl + 5 + 100;
    expect(made.text + 1 + 5 + made.view.getInt32(made.text + 2, true)).toBe(before);
  });

  it('refuses entries that lead out of the patch', () => {
    expect(() => image([1, 2, 3], 0, 2).apply(1)).toThrow('leads astray');
    expect(() => image([0x90], 64).apply(1)).toThrow('leads astray');
    const made = image([0x90], 0);
    made.view.setInt32(made.repl + 1, -10_000, true);
    expect(() => made.apply(1)).toThrow('leads astray');
  });
});
