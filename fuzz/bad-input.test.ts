import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../src/arch/x86-64/index.js';
import { ByteWriter } from '../src/base/byte-writer.js';
import { ParseError } from '../src/base/errors.js';
import { sectionDecompressors } from '../src/cli/decompressors.js';
import { SHF_COMPRESSED, SHT_PROGBITS, SHT_RELA, SHT_SYMTAB } from '../src/elf/constants.js';
import { parseElf } from '../src/elf/reader.js';
import { writeRelocatable } from '../src/elf/writer.js';
import { validateElf } from '../src/validate/validate-file.js';

/** Each kind of bad input that a file can be made of on purpose. */

const folder = mkdtempSync(join(tmpdir(), 'livegraft-bad-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SOURCE = `
int g(int); int f(int x) { return x > 3 ? g(x) + 1 : 7; }
`;
writeFileSync(join(folder, 'a.c'), SOURCE);

function build(name: string, ...flags: string[]): Uint8Array {
  const { status, stderr } = spawnSync('gcc', ['-O1', ...flags, '-o', name, 'a.c'], {
    cwd: folder,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(stderr);
  return new Uint8Array(readFileSync(join(folder, name)));
}

const object = build('a.o', '-c', '-g');
function validate(bytes: Uint8Array) {
  return validateElf(parseElf(bytes, 'bad', sectionDecompressors), { architecture: x86_64 });
}

/** A copy with the fields of its section headers changed. Offsets as in Elf64_Shdr: type 4, flags 8, address 16, offset 24, size 32, link 40, info 44. */
function withHeaders(
  original: Uint8Array,
  change: (view: DataView, at: number, name: string, index: number) => void,
) {
  const bytes = original.slice();
  const view = new DataView(bytes.buffer);
  const headers = Number(view.getBigUint64(0x28, true));
  parseElf(original, 'original').sections.forEach((section, i) => {
    change(view, headers + i * 64, section.name, i);
  });
  return bytes;
}

describe('a bad file is refused, or has findings', () => {
  it('cut at any length', () => {
    for (let length = 0; length < object.length; length += 7) {
      try {
        validate(object.subarray(0, length));
      } catch (error) {
        expect(error).toBeInstanceOf(ParseError);
      }
    }
  });

  it('of another class or byte order, by name', () => {
    const variant = (at: number, value: number) => {
      const bytes = object.slice();
      bytes[at] = value;
      return () => validate(bytes);
    };
    expect(variant(4, 1)).toThrow('a 32-bit ELF file; only 64-bit ones are supported');
    expect(variant(5, 2)).toThrow('a big-endian ELF file; only little-endian ones are supported');
    expect(variant(18, 183)).toThrow('made for machine 183, not for x86-64');
    expect(variant(16, 4)).toThrow('a core file');
  });

  it('that is an archive of objects, thin or not, by name', () => {
    for (const flags of ['rc', 'rcT']) {
      spawnSync('ar', [flags, `${flags}.a`, 'a.o'], { cwd: folder });
      expect(() => validate(new Uint8Array(readFileSync(join(folder, `${flags}.a`))))).toThrow(
        'an archive of objects',
      );
    }
  });

  it('whose sections share their code, whatever they would add up to', () => {
    const bytes = withHeaders(object, (view, at) => {
      if (view.getUint32(at + 4, true) !== 1) return;
      // Every section is executable, and all of the file.
      view.setBigUint64(at + 8, 6n, true);
      view.setBigUint64(at + 24, 0n, true);
      view.setBigUint64(at + 32, BigInt(object.length), true);
    });
    expect(() => validate(bytes)).toThrow(/bytes of code in a file of/);
  });

  it('whose tables name themselves', () => {
    for (const wanted of [SHT_RELA, SHT_SYMTAB]) {
      const bytes = withHeaders(object, (view, at, _, index) => {
        if (view.getUint32(at + 4, true) !== wanted) return;
        view.setUint32(at + 40, index, true);
        view.setUint32(at + 44, index, true);
      });
      try {
        validate(bytes);
      } catch (error) {
        expect(error).toBeInstanceOf(ParseError);
      }
    }
    // An .eh_frame that is its own relocations, and lines that are their own strings.
    const own = withHeaders(object, (view, at, name, index) => {
      if (name === '.eh_frame') {
        view.setUint32(at + 4, SHT_RELA, true);
        view.setUint32(at + 44, index, true);
      }
    });
    expect(validate(own).findings.every((finding) => finding.code !== 'cfa-mismatch')).toBe(true);
  });

  it('with absurd counts and places', () => {
    const huge = (field: number, value: bigint) =>
      withHeaders(object, (view, at, name) => {
        if (name === '.text' || name === '.eh_frame') view.setBigUint64(at + field, value, true);
      });
    expect(() => validate(huge(32, 2n ** 52n))).toThrow(ParseError);
    expect(() => validate(huge(24, 2n ** 52n))).toThrow(ParseError);
    expect(() => validate(huge(32, 2n ** 63n))).toThrow('absurd size');
    const bytes = object.slice();
    new DataView(bytes.buffer).setUint16(0x3c, 0xfff0, true);
    expect(() => validate(bytes)).toThrow('65520 section headers, room for');
  });

  it('whose CFI points outside', () => {
    const library = build('a.so', '-shared', '-fPIC', '-nostdlib');
    const section = parseElf(library, 'a.so').findSection('.eh_frame');
    if (section === undefined) throw new Error('no .eh_frame');
    const original = validate(library).findings.length;
    const view = new DataView(section.data.buffer, section.data.byteOffset, section.data.length);
    // The first FDE lies behind the CIE; its start is 8 bytes in.
    const fde = view.getUint32(0, true) + 4;
    view.setInt32(fde + 8, 0x7000_0000, true);
    const { findings } = validate(library);
    expect(original).toBe(0);
    expect(findings.map((finding) => finding.code)).toContain('orphan-entry');
  });

  it('with compressed sections is read, or refused by name, and never grows beyond what it says', () => {
    const lines = (bytes: Uint8Array) =>
      parseElf(bytes, 'packed', sectionDecompressors).findSection('.debug_line')?.data;
    const plain = lines(object);
    const packed = build('packed.o', '-c', '-g', '-gz=zlib');
    expect(plain?.length).toBeGreaterThan(20);
    expect(Buffer.compare(lines(packed) ?? new Uint8Array(), plain ?? new Uint8Array())).toBe(0);
    const elf = parseElf(packed, 'packed');
    const section = elf.findSection('.debug_info');
    if (section === undefined) throw new Error('no .debug_info');
    const other = packed.slice();
    new DataView(other.buffer).setUint32(section.offset, 7, true);
    const sectionOf = (bytes: Uint8Array, options = sectionDecompressors) =>
      parseElf(bytes, 'packed', options).findSection('.debug_info')?.data;
    expect(() => sectionOf(other)).toThrow('compressed with an unknown method (7)');
    expect(() => sectionOf(packed, {})).toThrow("compressed with zlib can't be read here");

    const text = new TextEncoder().encode('a line of text '.repeat(100));
    const zstd = spawnSync('zstd', ['-q', '-c'], { input: text }).stdout;
    const withSize = (sizeBytes: number) => {
      const chdr = new ByteWriter(64).writeU32(2).writeU32(0).writeU64(sizeBytes).writeU64(1).toBytes();
      return writeRelocatable({
        machine: 62,
        sections: [
          {
            name: '.debug_info',
            type: SHT_PROGBITS,
            flags: SHF_COMPRESSED,
            data: new Uint8Array([...chdr, ...zstd]),
            alignment: 8,
          },
        ],
        symbols: [],
        relocations: [],
      });
    };
    expect(Buffer.compare(sectionOf(withSize(text.length)) ?? new Uint8Array(), text)).toBe(0);
    expect(() => sectionOf(withSize(text.length - 1))).toThrow(ParseError);
    expect(() => sectionOf(withSize(text.length + 1))).toThrow(ParseError);
    expect(() => sectionOf(withSize(text.length), {})).toThrow("compressed with zstd can't be read here");
    const bomb = packed.slice();
    new DataView(bomb.buffer).setBigUint64(section.offset + 8, 2n ** 40n, true);
    expect(() => parseElf(bomb, 'bomb', sectionDecompressors).findSection('.debug_info')?.data).toThrow(
      'absurd uncompressed size',
    );
  });
});
