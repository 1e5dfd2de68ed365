import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { R_X86_64_PC32 } from '../elf/constants.js';
import { combinePatches } from './combine.js';
import type { Patch } from './content.js';
import { parsePatch, writePatch } from './file.js';
import type { PatchObject } from './manifest.js';
import { partOf } from './part.js';

const digest = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const ABOUT = { name: 'both', createdAt: '2026-01-01T00:00:00Z', tool: 'test' };

/** A patch of one function `f`, with a variable `v` that it refers to. */
function patchFor(object: string): Patch {
  const range = { address: '0x1000', sizeBytes: 8, sha256: '0'.repeat(64) };
  const text = Uint8Array.of(object.charCodeAt(0), 0, 0, 0, 0, 0, 0, 0);
  return {
    id: object,
    manifest: {
      formatVersion: 1,
      ...ABOUT,
      description: '',
      architecture: 'x86-64',
      objects: [
        {
          name: object,
          identity: { kind: 'buildId', hex: 'ab' },
          functions: [
            { name: 'f', sympos: 0, old: { name: 'f', ...range }, parts: [], newSymbol: 'f', newParts: [] },
          ],
          symbols: [],
        },
      ],
      newFunctions: [],
      newData: [],
      notes: [],
    },
    sections: [
      {
        name: '.text.f',
        kind: 'text',
        alignment: 16,
        data: text,
        sizeBytes: 8,
        relocations: [{ offset: 0, type: R_X86_64_PC32, symbolIndex: 1, addend: 0 }],
      },
      { name: '.data.v', kind: 'readWrite', alignment: 8, data: text, sizeBytes: 8, relocations: [] },
    ],
    symbols: [
      { kind: 'defined', name: 'f', section: 0, value: 0, sizeBytes: 8, isFunction: true },
      { kind: 'defined', name: 'v', section: 1, value: 0, sizeBytes: 8, isFunction: false },
    ],
  };
}

describe('combinePatches and partOf', () => {
  const combined = combinePatches([patchFor('a.so'), patchFor('b.so')], ABOUT);
  const read = parsePatch(writePatch(combined, digest), 'both.lgp', digest);
  const [, second] = read.manifest.objects as [PatchObject, PatchObject];

  it('name a kernel once that all of them name and one changes', () => {
    const kernel = (functions: PatchObject['functions'], hex = 'ab'): PatchObject => ({
      ...{ name: 'vmlinux', identity: { kind: 'buildId', hex }, functions, symbols: [] },
    });
    const [first, changed] = [patchFor('ext4'), patchFor('vmlinux')];
    const withKernel = (object: PatchObject): Patch => {
      const { manifest } = first;
      return { ...first, manifest: { ...manifest, objects: [object, ...manifest.objects] } };
    };
    const { objects } = combinePatches([withKernel(kernel([])), changed], ABOUT).manifest;
    expect(objects.map(({ name, functions }) => [name, functions.length])).toEqual([
      ['vmlinux', 1],
      ['ext4', 1],
    ]);
    expect(() => combinePatches([withKernel(kernel([], 'cd')), changed], ABOUT)).toThrow('different builds');
  });

  it('tells names apart that both define, in a file that reads back', () => {
    expect(read.manifest.objects.map(({ name }) => name)).toEqual(['a.so', 'b.so']);
    expect(second.functions[0]?.newSymbol).toBe('f.1.combined');
  });

  it('gives each object the sections of its own', () => {
    const part = partOf(read, second);
    expect(part.manifest.objects).toEqual([second]);
    expect(part.sections.map(({ name, data }) => [name, data[0]])).toEqual([
      ['.text.f', 0x62],
      ['.data.v', 0x62],
    ]);
    const symbol = part.symbols.find((s) => s.kind === 'defined' && s.name === 'f.1.combined');
    expect(symbol).toMatchObject({ section: 0 });
    const target = part.symbols[part.sections[0]?.relocations[0]?.symbolIndex ?? -1];
    expect(target).toMatchObject({ name: 'v.1.combined', section: 1 });
  });

  it('refuses two patches of one object, and parts that refer to each other', () => {
    expect(() => combinePatches([patchFor('a.so'), patchFor('a.so')], ABOUT)).toThrow(
      /two of the patches are for a.so/,
    );
    const [first] = combined.sections;
    const index = combined.symbols.findIndex((s) => s.kind === 'defined' && s.name === 'v.1.combined');
    const relocations = [{ offset: 0, type: R_X86_64_PC32, symbolIndex: index, addend: 0 }];
    const sections = combined.sections.map((section) =>
      section === first ? { ...section, relocations } : section,
    );
    expect(() => partOf({ ...combined, id: '', sections }, second)).toThrow(/refer to each other/);
  });
});
