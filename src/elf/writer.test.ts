import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import * as c from './constants.js';
import { parseElf } from './reader.js';
import { type RelocatableToWrite, writeRelocatable } from './writer.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-writer-'));
afterAll(() => rmSync(folder, { recursive: true }));

const KINDS = [
  { type: c.SHT_PROGBITS, flags: c.SHF_ALLOC | c.SHF_EXECINSTR },
  { type: c.SHT_PROGBITS, flags: c.SHF_ALLOC },
  { type: c.SHT_PROGBITS, flags: c.SHF_ALLOC | c.SHF_WRITE },
  { type: c.SHT_NOBITS, flags: c.SHF_ALLOC | c.SHF_WRITE },
];
const identifier = fc.stringMatching(/^[a-z][a-z0-9_]{0,12}$/);

/** Objects of any shape, with names that repeat and relocations that name any symbol. */
const objects: fc.Arbitrary<RelocatableToWrite> = fc
  .record({
    sections: fc.array(
      fc.record({
        name: identifier,
        kind: fc.constantFrom(...KINDS),
        size: fc.integer({ min: 16, max: 200 }),
        shift: fc.nat(5),
      }),
      { minLength: 1, maxLength: 6 },
    ),
    symbols: fc.array(
      fc.record({
        name: identifier,
        at: fc.nat(5),
        value: fc.nat(15),
        size: fc.nat(8),
        type: fc.constantFrom(c.STT_FUNC, c.STT_OBJECT, c.STT_NOTYPE),
        isGlobal: fc.boolean(),
        isUndefined: fc.boolean(),
      }),
      { minLength: 1, maxLength: 8 },
    ),
    relocations: fc.array(
      fc.record({
        at: fc.nat(5),
        offset: fc.nat(8),
        symbol: fc.nat(7),
        addend: fc.integer({ min: -64, max: 64 }),
      }),
      {
        maxLength: 8,
      },
    ),
  })
  .map(({ sections, symbols, relocations }) => {
    const place = (at: number) => at % sections.length;
    const written = sections.map(({ name, kind, size, shift }, i) => ({
      name: `.${name}${i}`,
      ...kind,
      data:
        kind.type === c.SHT_NOBITS
          ? new Uint8Array()
          : Uint8Array.from({ length: size }, (_, at) => (at * 7 + i) & 0xff),
      sizeBytes: size,
      alignment: 1 << shift,
    }));
    const progbits = written.flatMap((section, i) => (section.type === c.SHT_PROGBITS ? [i] : []));
    const tables = progbits.map((section) => ({
      name: `.rela${written[section]?.name}`,
      section,
      flags: 0,
      relocations: relocations
        .filter((r) => progbits.length > 0 && progbits[r.at % progbits.length] === section)
        .map((r) => ({
          offset: r.offset,
          type: c.R_X86_64_64,
          symbolIndex: r.symbol % symbols.length,
          addend: r.addend,
        })),
    }));
    return {
      machine: c.EM_X86_64,
      sections: written,
      symbols: symbols.map((s, i) => ({
        name: `${s.name}_${i}`,
        section: s.isUndefined ? { reserved: c.SHN_UNDEF } : place(s.at),
        value: s.isUndefined ? 0 : s.value,
        sizeBytes: s.isUndefined ? 0 : s.size,
        type: s.isUndefined ? c.STT_NOTYPE : s.type,
        binding: s.isGlobal || s.isUndefined ? c.STB_GLOBAL : c.STB_LOCAL,
      })),
      relocations: tables.filter((table) => table.relocations.length > 0),
    };
  });

describe('writeRelocatable', () => {
  it('writes what readelf reads without a warning, ld takes, and our reader reads back', () => {
    const path = join(folder, 'object.o');
    fc.assert(
      fc.property(objects, (object) => {
        const bytes = writeRelocatable(object);
        writeFileSync(path, bytes);
        const { status, stdout, stderr } = spawnSync('readelf', ['-hSsrW', path], { encoding: 'utf8' });
        expect([status, stderr]).toEqual([0, '']);
        expect(stdout).not.toMatch(/warning|error|corrupt/i);
        for (const { name, sizeBytes } of object.sections)
          expect(stdout).toMatch(
            new RegExp(`\\${name} +\\w+ +0{16} \\w+ 0*${(sizeBytes ?? 0).toString(16)} `),
          );
        const rows = [
          ...stdout.matchAll(/^([0-9a-f]{16}) .* R_X86_64_64 +[0-9a-f]{16} (\S+) ([+-]) ([0-9a-f]+)$/gm),
        ];
        const stated = rows.map(([, offset, name, sign, addend]) => [
          Number.parseInt(offset as string, 16),
          name,
          Number.parseInt(addend as string, 16) * (sign === '-' ? -1 : 1),
        ]);
        const wanted = object.relocations.flatMap((table) =>
          table.relocations.map((r) => [r.offset, object.symbols[r.symbolIndex]?.name, r.addend]),
        );
        expect(stated).toEqual(wanted);
        const link = spawnSync('ld', ['-r', '-o', `${path}.linked`, path], { encoding: 'utf8' });
        expect([link.status, link.stderr]).toEqual([0, '']);
        const elf = parseElf(bytes, 'written');
        expect(
          elf.symbols
            .slice(1)
            .map((s) => s.name)
            .sort(),
        ).toEqual(object.symbols.map((s) => s.name).sort());
        for (const { name, data, sizeBytes, alignment } of object.sections)
          expect(elf.findSection(name)).toMatchObject({ data, sizeBytes, alignment });
      }),
      { seed: 12, numRuns: 40 },
    );
  });
});
