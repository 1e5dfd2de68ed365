import { describe, expect, it } from 'vitest';
import * as c from '../elf/constants.js';
import { parseElf } from '../elf/reader.js';
import { writeRelocatable } from '../elf/writer.js';
import { readModuleImage } from './module-image.js';

const TEXT = c.SHF_ALLOC | c.SHF_EXECINSTR;
const INFORMATION = 'license=GPL\0name=some_module\0vermagic=6.1.0-1-amd64 SMP mod_unload \0';
const NOTE = Uint8Array.of(4, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 0x47, 0x4e, 0x55, 0, 0xab, 0xcd, 0xef, 1);

function module(sections: { readonly name: string; readonly flags: number; readonly data: Uint8Array }[]) {
  const first = [
    { name: '.text', flags: TEXT, data: new Uint8Array(37), alignment: 16 },
    { name: '.init.text', flags: TEXT, data: new Uint8Array(5), alignment: 16 },
    { name: '.data', flags: c.SHF_ALLOC | c.SHF_WRITE, data: new Uint8Array(8), alignment: 8 },
    { name: '.text.unlikely', flags: TEXT, data: new Uint8Array(3), alignment: 4 },
  ];
  const symbol = (name: string, section: number, value: number, type = c.STT_FUNC) => ({
    ...{ name, value, sizeBytes: 2, type, binding: c.STB_LOCAL, section },
  });
  const all = [...first, ...sections.map((section) => ({ ...section, alignment: 4 }))];
  const bytes = writeRelocatable({
    machine: c.EM_X86_64,
    sections: all.map((section) => ({
      ...section,
      type: section.name.startsWith('.note') ? c.SHT_NOTE : c.SHT_PROGBITS,
      sizeBytes: section.data.length,
    })),
    symbols: [
      symbol('f', 0, 32),
      symbol('start', 1, 0),
      symbol('f.cold', 3, 1),
      symbol('twice', 0, 0),
      symbol('twice', 2, 4, c.STT_OBJECT),
    ],
    relocations: [],
  });
  return parseElf(bytes, 'some.ko');
}

const modinfo = { name: '.modinfo', flags: c.SHF_ALLOC, data: new TextEncoder().encode(INFORMATION) };
const buildId = { name: '.note.gnu.build-id', flags: c.SHF_ALLOC, data: NOTE };

describe('readModuleImage', () => {
  it('knows what the module is called, its kernel, and where its functions come to lie', () => {
    const image = readModuleImage(module([modinfo, buildId]));
    expect(image).toMatchObject({ name: 'some_module', release: '6.1.0-1-amd64', buildId: 'abcdef01' });
    expect(image.findAll('f').map((symbol) => symbol.textOffset)).toEqual([32]);
    // Behind the 37 bytes of .text, aligned; the init section is somewhere else.
    expect(image.findAll('f.cold').map((symbol) => symbol.textOffset)).toEqual([41]);
    expect(image.findAll('start').map((symbol) => symbol.textOffset)).toEqual([undefined]);
    expect(image.findAll('twice').map((symbol) => symbol.kind)).toEqual(['func', 'object']);
    expect(image.findAll('none')).toEqual([]);
  });

  it.each([
    ['no module', [buildId]],
    ['no build-id', [modinfo]],
  ])('refuses a file that is %s', (_, sections) => {
    expect(() => readModuleImage(module(sections))).toThrow(
      expect.objectContaining({ code: 'module-unusable' }),
    );
  });
});
