import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { ownRows, readelfRows } from '../../test/oracle/frames/readelf-frames.js';
import { readVdso } from '../../test/support/vdso.js';
import { ByteWriter } from '../base/byte-writer.js';
import { ParseError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';
import { FrameStates, frameRows } from './frame-program.js';
import { type Fde, FrameSection, parseFrameHeaderTable } from './frame-section.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-frames-'));
afterAll(() => rmSync(folder, { recursive: true }));

function run(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
}

function source(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

function sectionOf(elf: ElfFile, name: '.eh_frame' | '.debug_frame'): FrameSection {
  const section = elf.findSection(name);
  if (section === undefined) throw new Error(`${elf.source} has no ${name}`);
  return new FrameSection({
    bytes: elf.type === c.ET_REL ? relocated(elf, section) : section.data,
    address: section.address,
    kind: name === '.eh_frame' ? 'eh_frame' : 'debug_frame',
    source: elf.source,
  });
}

/** The section with its relocations applied for sections that all lie at 0, as readelf shows an object file. */
function relocated(elf: ElfFile, section: ElfSection): Uint8Array {
  const bytes = section.data.slice();
  const view = new DataView(bytes.buffer);
  for (const { offset, type, symbolIndex, addend } of elf.relocationsFor(section)) {
    const value = (elf.symbols[symbolIndex]?.value ?? 0) + addend;
    if (type === c.R_X86_64_PC32) view.setInt32(offset, value - offset, true);
    else if (type === c.R_X86_64_32) view.setUint32(offset, value, true);
    else if (type === c.R_X86_64_64) view.setBigInt64(offset, BigInt(value), true);
    else throw new Error(`relocation type ${type}`);
  }
  return bytes;
}

/** Both sides as text, with the number of rows: an empty comparison would say nothing. */
function expectSameRows(
  path: string,
  name: '.eh_frame' | '.debug_frame',
  atLeast: number,
): readonly string[] {
  const own = ownRows(sectionOf(parseElf(readFileSync(path), path), name));
  expect(own.length).toBeGreaterThanOrEqual(atLeast);
  expect(own).toEqual(readelfRows(path, name));
  return own;
}

const PROGRAM = `
#include <stdlib.h>
#include <string.h>
struct big { char bytes[100]; };
static int helper(struct big b, int n) { char *p = alloca(n); memset(p, b.bytes[n], n); return p[n / 2]; }
int work(int n, int (*f)(int)) { struct big b; memset(&b, n, sizeof b); return helper(b, n) + f(n) + f(n + 1); }
int deep(int a, int b, int c, int d, int e, int f, int g, int h) {
  if (a == 0) abort();
  return deep(a - 1, b * c, c ^ d, d + e, e - f, f | g, g & h, h + a) + work(b, (int (*)(int))work) * c - d * e + f * g + h;
}
int main(int argc, char **argv) { return deep(argc, 2, 3, 4, 5, 6, 7, 8); }
`;

describe('rows held against readelf --debug-dump=frames-interp', () => {
  it.each([
    ['/usr/lib/x86_64-linux-gnu/libc.so.6', 20_000],
    ['/usr/lib/x86_64-linux-gnu/libstdc++.so.6', 20_000],
    ['/lib64/ld-linux-x86-64.so.2', 2000],
  ])('%s', (path, atLeast) => {
    expectSameRows(path, '.eh_frame', atLeast);
  });

  it('the vDSO of this process', () => {
    const path = join(folder, 'vdso.so');
    writeFileSync(path, readVdso());
    expectSameRows(path, '.eh_frame', 10);
  });

  it.each([
    '-O2',
    '-O2 -fomit-frame-pointer -ffunction-sections',
    '-Os -fno-omit-frame-pointer',
    '-O0 -mcmodel=large',
  ])('an object file with relocations, compiled with %s', (flags) => {
    const object = join(folder, 'program.o');
    run('gcc', ...flags.split(' '), '-c', '-o', object, source('program.c', PROGRAM));
    expectSameRows(object, '.eh_frame', 10);
  });

  it('.debug_frame, of an object and of a program', () => {
    const path = source('program.c', PROGRAM);
    const flags = ['-g', '-O2', '-fno-asynchronous-unwind-tables', '-fno-unwind-tables'];
    run('gcc', ...flags, '-c', '-o', 'debug.o', path);
    expectSameRows(join(folder, 'debug.o'), '.debug_frame', 10);
    run('gcc', ...flags, '-o', 'debug', path);
    expectSameRows(join(folder, 'debug'), '.debug_frame', 10);
  });
});

/** Every call frame instruction that an assembler has a directive for, and the others as bytes. */
const ASSEMBLY = `
  .text
signal:
  .cfi_startproc
  .cfi_signal_frame
  .cfi_def_cfa rsp, 8
  .cfi_return_column 16
  push %rbx
  .cfi_adjust_cfa_offset 8
  .cfi_rel_offset rbx, 0
  .cfi_remember_state
  push %rbp
  .cfi_def_cfa_offset 24
  .cfi_offset rbp, -24
  .cfi_remember_state
  mov %rsp, %rbp
  .cfi_def_cfa_register rbp
  .cfi_val_offset r12, -40
  .cfi_undefined r13
  .cfi_same_value r14
  .cfi_register r15, rax
  nop
  .cfi_restore_state
  pop %rbp
  .cfi_restore rbp
  .cfi_restore_state
  pop %rbx
  .cfi_def_cfa_offset 8
  .cfi_restore rbx
  .fill 70, 1, 0x90
  .cfi_def_cfa_offset 16
  .fill 300, 1, 0x90
  .cfi_def_cfa_offset 24
  .fill 70000, 1, 0x90
  .cfi_def_cfa_offset 32
  ret
  .cfi_endproc
escaped:
  .cfi_startproc
  nop
  .cfi_escape 0x05, 0x03, 0x02            # DW_CFA_offset_extended rbx
  nop
  .cfi_escape 0x06, 0x03                  # DW_CFA_restore_extended rbx
  nop
  .cfi_escape 0x11, 0x03, 0x7e            # DW_CFA_offset_extended_sf rbx, -2
  nop
  .cfi_escape 0x12, 0x07, 0x7c            # DW_CFA_def_cfa_sf rsp, -4
  nop
  .cfi_escape 0x13, 0x7b                  # DW_CFA_def_cfa_offset_sf -5
  nop
  .cfi_escape 0x14, 0x0c, 0x03            # DW_CFA_val_offset r12
  nop
  .cfi_escape 0x15, 0x0c, 0x7d            # DW_CFA_val_offset_sf r12
  nop
  .cfi_escape 0x0f, 0x03, 0x77, 0x08, 0x06 # DW_CFA_def_cfa_expression breg7 8, deref
  nop
  .cfi_escape 0x10, 0x03, 0x02, 0x77, 0x10 # DW_CFA_expression rbx
  nop
  .cfi_escape 0x16, 0x0d, 0x02, 0x77, 0x10 # DW_CFA_val_expression r13
  nop
  .cfi_escape 0x0c, 0x07, 0x08            # DW_CFA_def_cfa
  nop
  .cfi_escape 0x2e, 0x20                  # DW_CFA_GNU_args_size
  nop
  .cfi_escape 0x2f, 0x0e, 0x03            # DW_CFA_GNU_negative_offset_extended r14
  nop
  .cfi_escape 0x09, 0x03, 0x11            # DW_CFA_register rbx in xmm0
  nop
  .cfi_escape 0x02, 0x00                  # DW_CFA_advance_loc1 by nothing
  .cfi_escape 0x07, 0x10                  # DW_CFA_undefined: the outermost frame
  nop
  .cfi_endproc
`;

describe('hand-made assembly', () => {
  it.each(['.eh_frame', '.debug_frame'] as const)('every call frame instruction, in %s', (name) => {
    run('as', '-o', 'hand.o', source('hand.s', `.cfi_sections ${name}\n${ASSEMBLY}`));
    const path = join(folder, 'hand.o');
    expectSameRows(path, name, 24);
    const fdes = [...sectionOf(parseElf(readFileSync(path), path), name).entries()];
    expect(fdes[0]?.cie.signalFrame).toBe(true);
    const rows = [...frameRows(fdes[1] as (typeof fdes)[number], 'hand')];
    // What readelf does not print.
    expect(rows.map((row) => row.argsSizeBytes).slice(-4)).toEqual([32, 32, 32, 32]);
    const expressions = rows
      .flatMap((row) => [row.cfa, ...row.registers.values()])
      .filter((rule) => 'expression' in rule);
    const kinds = new Map(
      expressions.map((rule) => [rule.kind, 'expression' in rule ? [...rule.expression] : []]),
    );
    expect(Object.fromEntries(kinds)).toEqual({ expression: [0x77, 0x10], valExpression: [0x77, 0x10] });
    expect(rows.find((row) => row.cfa.kind === 'expression')?.cfa).toEqual({
      kind: 'expression',
      expression: Uint8Array.of(0x77, 8, 6),
    });
    expect(rows[rows.length - 1]?.registers.get(16)).toEqual({ kind: 'undefined' });
  });

  it('reads personality, language data and their encodings', () => {
    const text = `
      .text
      f: .cfi_startproc
      .cfi_personality 0x9b, DW.ref.personality
      .cfi_lsda 0x1b, .Llsda
      push %rbp
      .cfi_def_cfa_offset 16
      ret
      .cfi_endproc
      .section .gcc_except_table,"a"
      .Llsda: .long 0
      .data
      DW.ref.personality: .quad 0
      .section .note.GNU-stack,"",@progbits`;
    run('as', '-o', 'personality.o', source('personality.s', text));
    const path = join(folder, 'personality.o');
    const elf = parseElf(readFileSync(path), path);
    const bytes = elf.findSection('.eh_frame')?.data ?? new Uint8Array();
    const [fde] = [...new FrameSection({ bytes, address: 0, kind: 'eh_frame', source: path }).entries()];
    expect(fde?.cie).toMatchObject({ augmentation: 'zPLR', pointerEncoding: 0x1b, lsdaEncoding: 0x1b });
    // The assembler has relocations where we say that the pointers lie.
    const section = elf.findSection('.eh_frame') as ElfSection;
    const places = elf.relocationsFor(section).map((r) => r.offset);
    expect(places.sort((a, b) => a - b)).toEqual([fde?.cie.personalityAt, fde?.locationAt, fde?.lsdaAt]);
  });
});

interface RawEntry {
  readonly encoding: number;
  readonly start: (writer: ByteWriter, at: number) => void;
  readonly size: (writer: ByteWriter) => void;
  readonly program?: (writer: ByteWriter, at: number) => void;
  readonly version?: 1 | 3 | 4;
  readonly is64?: boolean;
  readonly augmentation?: string;
  readonly kind?: 'eh_frame' | 'debug_frame';
}

/** A section of one CIE and one FDE, byte for byte. */
function rawSection(entry: RawEntry): Uint8Array {
  const { version = 1, is64 = false, augmentation = 'zR', kind = 'eh_frame' } = entry;
  const out = new ByteWriter(256);
  const begin = () => {
    if (is64) out.writeU32(0xffffffff).writeU64(0);
    else out.writeU32(0);
    return out.length;
  };
  const end = (body: number) => {
    while (out.length % 8 !== 0) out.writeU8(0);
    out.patchU32(body - (is64 ? 8 : 4), out.length - body);
  };
  const wide = is64 && kind === 'debug_frame';
  const cieBody = begin();
  if (kind === 'eh_frame') out.writeU32(0);
  else if (wide) out.writeU64(-1);
  else out.writeU32(0xffffffff);
  out.writeU8(version);
  for (const letter of augmentation) out.writeU8(letter.charCodeAt(0));
  out.writeU8(0);
  if (augmentation === 'eh') out.writeU64(0x1234);
  if (version === 4) out.writeU8(8).writeU8(0);
  out.writeU8(1).writeU8(0x78).writeU8(16);
  if (augmentation.startsWith('z')) out.writeU8(1).writeU8(entry.encoding);
  // def_cfa rsp+8; ra at c-8
  out.writeBytes(Uint8Array.of(0x0c, 7, 8, 0x90, 1));
  end(cieBody);
  const body = begin();
  if (kind === 'eh_frame') out.writeU32(body);
  else if (wide) out.writeU64(0);
  else out.writeU32(0);
  entry.start(out, out.length);
  entry.size(out);
  if (augmentation.startsWith('z')) out.writeU8(0);
  entry.program?.(out, out.length);
  out.writeBytes(Uint8Array.of(0x41, 0x0e, 16));
  end(body);
  if (kind === 'eh_frame') out.writeU32(0);
  return out.toBytes();
}

const ADDRESS = 0x3000;
const START = 0x4560;
const SIZE = 0x70;

/** Pointer formats (the low half of an encoding) with how they are written; LEB128 ones are ours alone, not readelf's. */
const FORMATS: readonly (readonly [string, number, (writer: ByteWriter, value: number) => void])[] = [
  ['absptr', 0x00, (w, v) => w.writeU64(v)],
  [
    'uleb128',
    0x01,
    (w, v) => w.writeBytes(Uint8Array.of((v & 0x7f) | 0x80, ((v >> 7) & 0x7f) | 0x80, v >> 14)),
  ],
  ['udata2', 0x02, (w, v) => w.writeBytes(Uint8Array.of(v & 0xff, v >> 8))],
  ['udata4', 0x03, (w, v) => w.writeU32(v)],
  ['udata8', 0x04, (w, v) => w.writeU64(v)],
  [
    'sleb128',
    0x09,
    (w, v) => w.writeBytes(Uint8Array.of((v & 0x7f) | 0x80, ((v >> 7) & 0x7f) | 0x80, v >> 14)),
  ],
  ['sdata2', 0x0a, (w, v) => w.writeBytes(Uint8Array.of(v & 0xff, (v >> 8) & 0xff))],
  ['sdata4', 0x0b, (w, v) => w.writeI32(v)],
  ['sdata8', 0x0c, (w, v) => w.writeU64(v)],
];
const APPLICATIONS = [
  ['absolute', 0x00, () => 0],
  ['pcrel', 0x10, (at: number) => ADDRESS + at],
  ['textrel', 0x20, () => 0x1000],
  ['datarel', 0x30, () => 0x2000],
] as const;

/** Rows up to the first error, and what it says. */
function rowsByMachine(fde: Fde): unknown[] {
  const rows: unknown[] = [];
  try {
    for (const { start, end, cfa, registers, signalFrame } of frameRows(fde, 'damaged'))
      rows.push({ start, end, cfa, registers, signalFrame });
  } catch (error) {
    rows.push((error as Error).message);
  }
  return rows;
}

function rowsByStates(states: FrameStates, fde: Fde): unknown[] {
  const rows: unknown[] = [];
  try {
    states.run(fde, (start, end, state) => rows.push({ start, end, ...states.ruleOf(state, fde.cie) }));
  } catch (error) {
    rows.push((error as Error).message);
  }
  return rows;
}

describe('states of call frame instructions', () => {
  it.each(['libc.so.6', 'libcrypto.so.3'])('give the rows of %s', (name) => {
    const path = `/usr/lib/x86_64-linux-gnu/${name}`;
    const section = parseElf(readFileSync(path), path).findSection('.eh_frame') as ElfSection;
    const frames = new FrameSection({
      bytes: section.data,
      address: section.address,
      kind: 'eh_frame',
      source: name,
    });
    const states = new FrameStates('damaged');
    let rows = 0;
    for (const fde of frames.entries()) {
      const found = rowsByStates(states, fde);
      if (!isDeepStrictEqual(found, rowsByMachine(fde))) expect(found).toEqual(rowsByMachine(fde));
      rows += found.length;
    }
    expect(rows).toBeGreaterThan(10_000);
  });
});

function parseRaw(bytes: Uint8Array, kind: 'eh_frame' | 'debug_frame' = 'eh_frame', address = ADDRESS) {
  const section = new FrameSection({
    bytes,
    address,
    kind,
    source: 'raw',
    textBase: 0x1000,
    dataBase: 0x2000,
  });
  return [...section.entries()].map((fde) => ({ fde, rows: [...frameRows(fde, 'raw')] }));
}

/** The bytes as `.eh_frame` of an object at {@link ADDRESS}, for readelf. */
function readelfRaw(bytes: Uint8Array, kind: 'eh_frame' | 'debug_frame'): string[] {
  const text = `.section .${kind},"a",@progbits\n.byte ${[...bytes].join(',')}\n`;
  run('as', '-o', 'raw.o', source('raw.s', text));
  run('objcopy', '--change-section-address', `.${kind}=${ADDRESS}`, 'raw.o', 'raw-at.o');
  return readelfRows(join(folder, 'raw-at.o'), `.${kind}`);
}

describe('pointer encodings', () => {
  for (const [format, low, write] of FORMATS) {
    for (const [application, high, base] of APPLICATIONS) {
      it(`${application} ${format}`, () => {
        const bytes = rawSection({
          encoding: high | low,
          start: (w, at) => write(w, START - base(at)),
          size: (w) => write(w, SIZE),
          // DW_CFA_set_loc has the same encoding as the initial location.
          program: (w, at) => {
            w.writeU8(0x01);
            write(w, START + 0x20 - base(at + 1));
            w.writeBytes(Uint8Array.of(0x0e, 24));
          },
        });
        const [entry] = parseRaw(bytes);
        expect([entry?.fde.start, entry?.fde.end]).toEqual([START, START + SIZE]);
        expect(entry?.rows.map((row) => [row.start, row.end])).toEqual([
          [START, START + 0x20],
          [START + 0x20, START + 0x21],
          [START + 0x21, START + SIZE],
        ]);
        // readelf knows neither LEB128 pointers nor the bases of textrel and datarel.
        if (high > 0x10 || format.includes('leb')) return;
        const section = new FrameSection({ bytes, address: ADDRESS, kind: 'eh_frame', source: 'raw' });
        expect(ownRows(section)).toEqual(readelfRaw(bytes, 'eh_frame'));
      });
    }
  }

  it('aligned: the pointer begins at the next multiple of eight', () => {
    const unaligned = ADDRESS + 4;
    const bytes = rawSection({
      encoding: 0x50,
      start: (w, at) => {
        w.writeU32(0xeeeeeeee);
        expect((unaligned + at) % 8).toBe(4);
        w.writeU64(START);
      },
      size: (w) => w.writeU64(SIZE),
    });
    expect(parseRaw(bytes, 'eh_frame', unaligned)[0]?.fde).toMatchObject({ start: START, end: START + SIZE });
  });

  it.each([0x40, 0x70, 0x05, 0x0f])('refuses encoding %i, which has no meaning here', (encoding) => {
    const bytes = rawSection({ encoding, start: (w) => w.writeU64(START), size: (w) => w.writeU64(SIZE) });
    expect(() => parseRaw(bytes)).toThrow(ParseError);
  });

  it('refuses a range that is negative', () => {
    const bytes = rawSection({
      encoding: 0x0b,
      start: (w) => w.writeI32(START),
      size: (w) => w.writeI32(-1),
    });
    expect(() => parseRaw(bytes)).toThrow(/range of -1 bytes/);
  });
});

describe('entry formats', () => {
  const absolute = {
    encoding: 0,
    start: (w: ByteWriter) => w.writeU64(START),
    size: (w: ByteWriter) => w.writeU64(SIZE),
  };
  it.each([
    ['eh_frame', 1, 'zR', false],
    ['eh_frame', 3, 'zR', false],
    ['eh_frame', 1, '', false],
    ['eh_frame', 1, 'eh', false],
    ['debug_frame', 1, '', false],
    ['debug_frame', 3, '', false],
    ['debug_frame', 4, '', false],
    ['debug_frame', 3, '', true],
    ['debug_frame', 4, '', true],
  ] as const)('%s, CIE version %i, augmentation "%s", 64-bit: %s', (kind, version, augmentation, is64) => {
    const bytes = rawSection({ ...absolute, kind, version, augmentation, is64 });
    const [entry] = parseRaw(bytes, kind);
    expect(entry?.rows).toHaveLength(2);
    const section = new FrameSection({ bytes, address: ADDRESS, kind, source: 'raw' });
    expect(ownRows(section)).toEqual(readelfRaw(bytes, kind));
  });

  it('.eh_frame with an extended length has ids of four bytes (LSB 5.0; readelf reads eight)', () => {
    const [entry] = parseRaw(rawSection({ ...absolute, is64: true }));
    expect(entry?.fde).toMatchObject({ start: START, end: START + SIZE });
  });

  it.each([
    ['zQR', /version|format|unknown|needs|outside|header/],
    ['armcc+', /unknown augmentation/],
  ])('refuses or skips augmentation %s', (augmentation, pattern) => {
    const bytes = rawSection({ ...absolute, augmentation });
    // Behind an unknown letter nothing can be told, but z says how much to skip: then the pointer is absolute.
    if (augmentation.startsWith('z')) expect(parseRaw(bytes)[0]?.fde.start).toBe(START);
    else expect(() => parseRaw(bytes)).toThrow(pattern);
  });

  it('advances by eight bytes of distance', () => {
    const program = (w: ByteWriter) => {
      w.writeBytes(Uint8Array.of(0x0e, 32, 0x1d)).writeU64(2 ** 33);
    };
    const size = (w: ByteWriter) => w.writeU64(2 ** 34);
    const [entry] = parseRaw(rawSection({ ...absolute, size, program }));
    expect(entry?.rows.map((row) => row.start - START)).toEqual([0, 2 ** 33, 2 ** 33 + 1]);
  });
});

describe('.eh_frame_hdr', () => {
  it.each(['/usr/lib/x86_64-linux-gnu/libc.so.6', process.execPath])('leads to every entry of %s', (path) => {
    const elf = parseElf(readFileSync(path), path);
    const header = elf.findSection('.eh_frame_hdr');
    const frames = elf.findSection('.eh_frame');
    if (header === undefined || frames === undefined) throw new Error('no unwind table');
    const table = parseFrameHeaderTable(header.data, header.address, path);
    const section = sectionOf(elf, '.eh_frame');
    const wanted = [...section.entries()].map((fde) => [fde.start, frames.address + fde.offset]);
    wanted.sort((a, b) => (a[0] as number) - (b[0] as number));
    expect(table?.starts.length).toBe(wanted.length);
    expect(wanted.every(([start], i) => table?.starts[i] === start)).toBe(true);
    for (let i = 0; i < wanted.length; i += 97) {
      const fde = section.fdeAt((table?.entries[i] as number) - frames.address);
      expect(fde.start).toBe(table?.starts[i]);
    }
  });
});

describe('damaged sections', () => {
  const libc = '/usr/lib/x86_64-linux-gnu/libc.so.6';
  const elf = parseElf(readFileSync(libc), libc);
  const frames = elf.findSection('.eh_frame') as ElfSection;

  /** Reads all there is; every failure must be a ParseError. */
  function readAll(bytes: Uint8Array, kind: 'eh_frame' | 'debug_frame'): void {
    try {
      const section = new FrameSection({ bytes, address: 0x1000, kind, source: 'damaged' });
      const states = new FrameStates('damaged');
      for (const fde of section.entries()) {
        expect(rowsByStates(states, fde)).toEqual(rowsByMachine(fde));
        let previous = Number.NEGATIVE_INFINITY;
        for (const row of frameRows(fde, 'damaged')) {
          expect(row.start).toBeGreaterThanOrEqual(previous);
          expect(row.end).toBeGreaterThan(row.start);
          previous = row.end;
        }
      }
    } catch (error) {
      expect(error).toBeInstanceOf(ParseError);
    }
  }

  it('of nothing but chance, with a CIE that is well-formed', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 60 }), fc.uint8Array({ maxLength: 60 }), (common, own) => {
        const cie = [0, 0, 0, 0, 1, 0x7a, 0x52, 0, 1, 0x78, 16, 1, 0x1b, ...common];
        const fde = [0, 0, 0, 0, 0, 0, 16, 0, 0, 1, 0, 0, 0, ...own];
        const out = new ByteWriter(256);
        out.writeU32(cie.length).writeBytes(Uint8Array.from(cie));
        out.writeU32(fde.length);
        const at = out.length;
        out.writeBytes(Uint8Array.from(fde));
        out.patchU32(at, at);
        readAll(out.toBytes(), 'eh_frame');
      }),
      { seed: 21, numRuns: 3000 },
    );
  });

  it('cut at every length of a small one', () => {
    for (let length = 0; length < 400; length++) readAll(frames.data.subarray(0, length), 'eh_frame');
  });

  it('a program that would take forever or fill memory is refused', () => {
    // Half a million registers, then as many rows.
    const out = new ByteWriter(1 << 20);
    for (let i = 0; i < 200_000; i++)
      out.writeBytes(Uint8Array.of(0x08, (i & 0x7f) | 0x80, ((i >> 7) & 0x7f) | 0x80, i >> 14));
    const bytes = rawSection({
      encoding: 0,
      start: (w) => w.writeU64(START),
      size: (w) => w.writeU64(2 ** 40),
      program: (w) => w.writeBytes(out.toBytes()),
    });
    expect(() => parseRaw(bytes)).toThrow(/register 256/);
    const nested = rawSection({
      encoding: 0,
      start: (w) => w.writeU64(START),
      size: (w) => w.writeU64(SIZE),
      program: (w) => w.writeBytes(new Uint8Array(100_000).fill(0x0a)),
    });
    expect(() => parseRaw(nested)).toThrow(/too many remembered states/);
  });

  it.each([
    ['a CIE that advances', [], /unknown call frame instruction|advances/],
    ['a state restored that was not remembered', [0x0b], /not remembered/],
    ['an offset for a CFA that is an expression', [0x0f, 1, 0x30, 0x0e, 8], /CFA that is an expression/],
    ['a location that moves backwards', [0x44, 0x01, 0, 0, 0, 0, 0, 0, 0, 0], /backwards/],
    ['an unknown instruction', [0x3e], /unknown call frame instruction 0x3e/],
    ['an expression longer than the entry', [0x16, 3, 0x7f], /needs 127 bytes/],
  ])('%s', (_, program, pattern) => {
    const bytes = rawSection({
      encoding: 0,
      start: (w) => w.writeU64(START),
      size: (w) => w.writeU64(SIZE),
      program: (w) => w.writeBytes(Uint8Array.from(program)),
    });
    if (program.length === 0) bytes[bytes.indexOf(0x0c)] = 0x41;
    expect(() => parseRaw(bytes)).toThrow(pattern);
  });
});
