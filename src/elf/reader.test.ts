import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import * as c from './constants.js';
import { parseElf } from './reader.js';
import { writeRelocatable } from './writer.js';

const LIBC = '/usr/lib/x86_64-linux-gnu/libc.so.6';

function readelf(...args: string[]): string {
  const { status, stdout } = spawnSync('readelf', args, { encoding: 'utf8', maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error('readelf failed');
  return stdout;
}

describe('parseElf', () => {
  it.each([LIBC, process.execPath])('sees the sections and symbols that readelf sees in %s', (path) => {
    const elf = parseElf(readFileSync(path), path);
    const sections = [
      ...readelf('-SW', path).matchAll(
        /^\s*\[\s*(\d+)\]\s(\S*)\s+\S+\s+([0-9a-f]{16}) ([0-9a-f]+) ([0-9a-f]+)/gm,
      ),
    ];
    expect(sections.length).toBeGreaterThan(20);
    for (const [, index, name, address, offset, size] of sections) {
      const section = elf.sections[Number(index)];
      if (name !== '') expect(section?.name.slice(0, 17)).toBe(name?.slice(0, 17));
      expect(section?.address).toBe(Number.parseInt(address as string, 16));
      expect(section?.offset).toBe(Number.parseInt(offset as string, 16));
      expect(section?.sizeBytes).toBe(Number.parseInt(size as string, 16));
    }
    const rows = [
      ...readelf('--dyn-syms', '-W', path).matchAll(
        /^\s+(\d+): ([0-9a-f]{16})\s+(\d+|0x[0-9a-f]+) \S+\s+\S+\s+\S+\s+\S+ (\S+)/gm,
      ),
    ];
    expect(rows.length).toBe(elf.dynamicSymbols.length - 1);
    const differing = rows.filter(([, index, value, size, text]) => {
      const symbol = elf.dynamicSymbols[Number(index)];
      const [name, version] = (text as string).split(/@+/);
      // A library that defines a version has a symbol of its name, which readelf prints without it.
      const sameVersion = name === symbol?.version || (symbol?.version ?? '') === (version ?? '');
      return (
        symbol?.name !== name ||
        symbol?.value !== Number.parseInt(value as string, 16) ||
        symbol?.sizeBytes !== Number(size) ||
        !sameVersion
      );
    });
    expect(differing.map(([row]) => row)).toEqual([]);
    expect(readelf('-n', path)).toContain(`Build ID: ${elf.buildId}`);
  });

  it('reads the dynamic relocations of libc', () => {
    const elf = parseElf(readFileSync(LIBC), LIBC);
    const rows = [...readelf('-rW', LIBC).matchAll(/^([0-9a-f]{16})\s+[0-9a-f]{16} (R_X86_64_\w+)/gm)];
    expect(elf.dynamicRelocations.map((r) => [r.offset, c.relocationName(c.EM_X86_64, r.type)])).toEqual(
      rows.map(([, offset, type]) => [Number.parseInt(offset as string, 16), type]),
    );
  });

  it('refuses other classes, byte orders and formats by name', () => {
    const bytes = Uint8Array.from(readFileSync(LIBC).subarray(0, 64));
    const variant = (at: number, value: number) => {
      const copy = bytes.slice();
      copy[at] = value;
      return () => parseElf(copy, 'variant');
    };
    expect(variant(4, 1)).toThrow(/32-bit/);
    expect(variant(5, 2)).toThrow(/big-endian/);
    expect(variant(0, 0)).toThrow(/no ELF file/);
    expect(() => parseElf(new Uint8Array(10), 'short')).toThrow(/too few/);
  });
});

describe('writeRelocatable', () => {
  it('writes what it reads back, locals first', () => {
    const elf = parseElf(
      writeRelocatable({
        machine: c.EM_X86_64,
        sections: [
          {
            name: '.data',
            type: c.SHT_PROGBITS,
            flags: c.SHF_ALLOC | c.SHF_WRITE,
            data: Uint8Array.of(1, 2, 3),
            alignment: 8,
          },
        ],
        symbols: [
          {
            name: 'global',
            section: { reserved: c.SHN_LIVEPATCH },
            value: 0,
            sizeBytes: 0,
            type: c.STT_NOTYPE,
            binding: c.STB_GLOBAL,
          },
          { name: 'local', section: 0, value: 1, sizeBytes: 2, type: c.STT_OBJECT, binding: c.STB_LOCAL },
        ],
        relocations: [
          {
            name: '.rela.data',
            section: 0,
            flags: 0,
            relocations: [{ offset: 0, type: 1, symbolIndex: 0, addend: -7 }],
          },
        ],
      }),
      'written',
    );
    expect([...(elf.findSection('.data')?.data ?? [])]).toEqual([1, 2, 3]);
    expect(elf.symbols.map((s) => s.name)).toEqual(['', 'local', 'global']);
    const section = elf.findSection('.data');
    expect(section && elf.relocationsFor(section)).toEqual([
      { offset: 0, type: 1, symbolIndex: 2, addend: -7 },
    ]);
    expect(elf.symbols[2]?.sectionIndex).toBe(c.SHN_LIVEPATCH);
  });
});
