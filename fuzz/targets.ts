import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FlowCode, InstructionTable, NO_TARGET } from '../src/arch/instruction-table.js';
import { x86_64 } from '../src/arch/x86-64/index.js';
import { isExactAddress } from '../src/base/brand.js';
import { LivegraftError, ParseError } from '../src/base/errors.js';
import { parseBtf } from '../src/btf/parse-btf.js';
import { buildFromObjects, sha256 } from '../src/build/from-objects.js';
import { decompressors, sectionDecompressors } from '../src/cli/decompressors.js';
import { evaluateExpression } from '../src/dwarf/expression.js';
import { FrameStates, frameRows } from '../src/dwarf/frame-program.js';
import { FrameSection, parseFrameHeaderTable } from '../src/dwarf/frame-section.js';
import { LineTable } from '../src/dwarf/line-section.js';
import { parseLsda } from '../src/dwarf/lsda.js';
import { parseTypeLayouts } from '../src/dwarf/type-layouts.js';
import type { ElfFile } from '../src/elf/elf-file.js';
import { parseElf } from '../src/elf/reader.js';
import { extractVmlinux } from '../src/kernel-image/decompress.js';
import { parseKallsyms } from '../src/kernel-image/kallsyms.js';
import type { OrcFormat } from '../src/orc/format.js';
import { parseOrc } from '../src/orc/table.js';
import { parsePatch } from '../src/patch/file.js';
import { encodeProof, parseProof } from '../src/validate/proof.js';
import { Scratch } from '../src/validate/scratch.js';
import { validateElf } from '../src/validate/validate-file.js';
import { KALLSYMS_SHAPES, KALLSYMS_TABLES, layOutKallsyms } from '../test/support/kallsyms-image.js';
import { memoryTargets } from './memory-targets.js';
import { objectTargets } from './object-targets.js';
import {
  C_SOURCE,
  compile,
  type FuzzTarget,
  folder,
  MAIN,
  once,
  pack,
  readBytes,
  run,
  sectionsOf,
  unpack,
} from './support.js';

const CORPUS = fileURLToPath(new URL('../test/corpus/validate', import.meta.url));
const LIBRARY = '/usr/lib/x86_64-linux-gnu/libdl.so.2';
function openElf(bytes: Uint8Array): ElfFile {
  return parseElf(bytes, 'case', sectionDecompressors);
}

const withDebug = once(() =>
  ['-gdwarf-5', '-gdwarf-4', '-gdwarf-3 -gdwarf64'].map((flags, i) =>
    compile(`debug${i}`, `${C_SOURCE(3)}${MAIN}`, ...flags.split(' ')),
  ),
);

const elfSeeds = once(() => {
  // Small objects with every kind of table; one larger one with everything that a linker makes.
  const objects = readdirSync(CORPUS)
    .filter((name) => name.endsWith('.s'))
    .map((name) => {
      run('as', ['-o', `${name}.o`, join(CORPUS, name)]);
      return readBytes(join(folder, `${name}.o`));
    });
  const compressed = compile('packed.o', C_SOURCE(3), '-c', '-g', '-gz=zlib');
  return [...objects, readBytes(compressed), ...Array(8).fill(readBytes(LIBRARY))];
});

const frameSeeds = once(() => {
  const [frames = new Uint8Array(), header = new Uint8Array()] = sectionsOf(
    LIBRARY,
    '.eh_frame',
    '.eh_frame_hdr',
  );
  const [libc = new Uint8Array()] = sectionsOf('/usr/lib/x86_64-linux-gnu/libc.so.6', '.eh_frame');
  // Whole entries, up to some 4 KiB, and the terminator.
  let end = 0;
  const view = new DataView(libc.buffer);
  while (end < 4096) end += view.getUint32(end, true) + 4;
  const part = new Uint8Array(end + 4);
  part.set(libc.subarray(0, end));
  return [pack([frames, header]), pack([part, header])];
});

function readFrames(bytes: Uint8Array, kind: 'eh_frame' | 'debug_frame'): void {
  const section = new FrameSection({ bytes, address: 0x1000, kind, source: 'case' });
  const states = new FrameStates('case');
  for (const fde of section.entries()) {
    section.lsdaAddress(fde);
    let last = Number.NEGATIVE_INFINITY;
    let rows = 0;
    for (const row of frameRows(fde, 'case')) {
      if (row.start < last || row.end <= row.start) throw new Error('rows out of order');
      last = row.end;
      rows++;
    }
    states.run(fde, () => rows--);
    if (rows !== 0) throw new Error('two readers find another number of rows');
  }
}

/** Compiled code, the longest headers, and every first byte. */
const instructionSeeds = once(() => [
  (sectionsOf(LIBRARY, '.text')[0] as Uint8Array).slice(0, 2000),
  (sectionsOf('/usr/lib/x86_64-linux-gnu/libc.so.6', '.text')[0] as Uint8Array).slice(100_000, 104_000),
  new Uint8Array(400).fill(0x62),
  Uint8Array.from(
    { length: 512 },
    (_, i) => [0x66, 0xf2, 0xf3, 0x4f, 0x0f, 0xc4, 0xc5, 0x62][i % 8] as number,
  ),
  Uint8Array.from({ length: 1024 }, (_, i) => ((i & 3) === 0 ? i >> 2 : 0x84)),
]);

/** Where to go on: behind what is no instruction, a byte later. */
function sweepOn(bytes: Uint8Array, at: number, into: InstructionTable): number {
  const stopped = x86_64.sweeper.sweep(bytes, at, bytes.length, into);
  return stopped < bytes.length ? stopped + 1 : stopped;
}

const patchSeed = once(() => {
  const flags = ['-c', '-ffunction-sections', '-fdata-sections'];
  const plain = compile('plain.o', C_SOURCE(3), '-c');
  const { bytes } = buildFromObjects({
    origPath: compile('orig.o', C_SOURCE(3), ...flags),
    patchedPath: compile('patched.o', C_SOURCE(5), ...flags),
    targetPath: compile('target', MAIN, plain),
    debugDirs: [],
    acceptedTypes: [],
    name: 'x',
    description: '',
    onEvent: () => {},
  });
  return bytes;
});

/** What the undamaged patch's checksum is: damage behind it must be looked at, not only be noticed. */
const patchDigest = once(() => {
  let digest = sha256(new Uint8Array());
  parsePatch(patchSeed(), 'seed', (bytes) => {
    digest = sha256(bytes);
    return digest;
  });
  return digest;
});

const ORC_FORMATS: readonly OrcFormat[] = ['4.14', '4.18', '5.12', '6.3', '6.4', '7.2'];
const scratch = new Scratch();

export const TARGETS: readonly FuzzTarget[] = [
  {
    name: 'elf',
    cases: 1000,
    seeds: elfSeeds,
    read(bytes) {
      const elf = openElf(bytes);
      for (const section of elf.sections) void [section.data, elf.relocationsFor(section)];
      for (const symbol of [...elf.symbols, ...elf.dynamicSymbols]) void symbol.name;
      void [elf.notes, elf.needed, elf.soname, elf.dynamicRelocations];
    },
  },
  {
    name: 'validate',
    cases: 250,
    seeds: elfSeeds,
    read(bytes) {
      const result = validateElf(openElf(bytes), {
        architecture: x86_64,
        kernelRelease: '6.1.0',
        sources: ['dwarf', 'debug-frame', 'orc', 'frame-pointer'],
        agree: [['dwarf', 'frame-pointer']],
        scratch,
      });
      const proof = encodeProof(result, 'dwarf');
      if (proof !== undefined) parseProof(proof, 'case');
    },
  },
  {
    name: 'proof',
    cases: 500,
    seeds: once(() => {
      const proof = encodeProof(
        validateElf(parseElf(readFileSync(LIBRARY), LIBRARY), { architecture: x86_64 }),
        'dwarf',
      );
      if (proof === undefined) throw new Error('no proof');
      return [proof];
    }),
    read: (bytes) => void parseProof(bytes, 'case'),
  },
  {
    name: 'cfi',
    cases: 500,
    seeds: frameSeeds,
    read(bytes) {
      const [frames = bytes, header = bytes] = unpack(bytes, 2);
      const table = parseFrameHeaderTable(header, 0x1000, 'case');
      if (table !== undefined && table.starts.length * 8 > header.length)
        throw new Error('more entries than bytes');
      readFrames(frames, 'eh_frame');
      try {
        readFrames(frames, 'debug_frame');
      } catch (error) {
        // The seeds are of the other kind.
        if (!(error instanceof ParseError)) throw error;
      }
    },
  },
  {
    name: 'expression',
    cases: 5000,
    seeds: () => [
      Uint8Array.of(0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22),
      Uint8Array.of(0x76, 0x78, 0x06, 0x23, 8, 0x12, 0x14, 0x15, 1, 0x16, 0x28, 2, 0, 0x2f, 0, 0),
    ],
    read(bytes) {
      const context = { register: (n: number) => n * 8, read64: (at: number) => at + 1 };
      const value = evaluateExpression(bytes, context, 64);
      if (value !== undefined && !isExactAddress(value)) throw new Error(`not a number: ${value}`);
    },
  },
  {
    name: 'orc',
    cases: 2000,
    seeds: () =>
      ORC_FORMATS.map((_, i) => {
        const entries = Uint8Array.from(
          { length: 60 },
          (_, at) => [16, 0, 240, 255, 0x15, 0x08][at % 6] as number,
        );
        const ips = new Uint8Array(Int32Array.from({ length: 10 }, (_, at) => 0x1000 + at * 12).buffer);
        return pack([Uint8Array.of(i), entries, ips]);
      }),
    read(bytes) {
      const [which, entries = bytes, ips = bytes] = unpack(bytes, 3);
      const format = ORC_FORMATS[(which?.[0] ?? 0) % ORC_FORMATS.length] as OrcFormat;
      const orc = parseOrc({ entries, ips: { bytes: ips, address: -4096 }, format, source: 'case' });
      for (let i = 0; i < orc.size; i++) orc.find(orc.addresses[i] as number);
      orc.find(0);
    },
  },
  {
    name: 'instructions',
    cases: 1000,
    seeds: instructionSeeds,
    read(bytes) {
      const { sweeper, decoder } = x86_64;
      const table = new InstructionTable(16);
      const stopped = sweeper.sweep(bytes, 0, bytes.length, table);
      let at = 0;
      for (let i = 0; i < table.count; i++) {
        const one = decoder.decode(bytes, at, at, bytes.length);
        const flow = one && FlowCode[one.flow];
        if (
          one === undefined ||
          table.offsets[i] !== at ||
          one.lengthBytes !== table.lengths[i] ||
          flow !== table.flows[i] ||
          // Targets count in 32 bits: one beyond is in no file.
          ((one.target ?? NO_TARGET) | 0) !== table.targets[i]
        )
          throw new Error(`sweep and decoder disagree at ${at}`);
        void [decoder.fields(bytes, at), decoder.isPrecededByCall(bytes, at)];
        at += table.lengths[i] as number;
      }
      if (at !== stopped || at > bytes.length) throw new Error(`stopped at ${stopped} behind ${at}`);
    },
  },
  {
    name: 'header-trie',
    cases: 1000,
    seeds: instructionSeeds,
    read(bytes) {
      // What is in the trie is what all cases before have put there; headers met first are looked up the second time.
      const [first, second] = [new InstructionTable(16), new InstructionTable(16)];
      for (let at = 0; at < bytes.length; ) at = sweepOn(bytes, at, first);
      for (let at = 0; at < bytes.length; ) at = sweepOn(bytes, at, second);
      if (first.count !== second.count)
        throw new Error(`${second.count} instructions, ${first.count} at first`);
      for (const column of [
        'offsets',
        'lengths',
        'flows',
        'targets',
        'effects',
        'values',
        'touches',
      ] as const) {
        const at = first[column]
          .subarray(0, first.count)
          .findIndex((value, i) => value !== second[column][i]);
        if (at >= 0)
          throw new Error(`${column} of the instruction at ${first.offsets[at]} are others the second time`);
      }
    },
  },
  {
    name: 'line-table',
    cases: 1000,
    seeds: once(() =>
      withDebug().map((path) => pack(sectionsOf(path, '.debug_line', '.debug_line_str', '.debug_str'))),
    ),
    read(bytes) {
      const [lines = bytes, lineStrings, strings] = unpack(bytes, 3);
      const table = new LineTable({ bytes: lines, lineStrings, strings, source: 'case' });
      let last: number | undefined;
      for (const row of table.rows()) {
        if (last !== undefined && row.address < last) throw new Error('rows out of order');
        last = row.endsSequence ? undefined : row.address;
      }
      for (let address = 0x401000; address < 0x401400; address += 16) table.find(address);
    },
  },
  {
    name: 'lsda',
    cases: 3000,
    seeds: () => [
      Uint8Array.of(0xff, 0xff, 1, 8, 3, 5, 0x20, 0, 9, 0x81, 1, 0, 0),
      Uint8Array.of(0xff, 0x9b, 0x10, 3, 13, 0, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 1),
    ],
    read: (bytes) => void parseLsda(bytes, 0x4000, 0, 'case'),
  },
  {
    name: 'type-layouts',
    cases: 300,
    seeds: once(() =>
      withDebug()
        .slice(0, 2)
        .map((path) =>
          pack(sectionsOf(path, '.debug_info', '.debug_abbrev', '.debug_str', '.debug_line_str')),
        ),
    ),
    read(bytes) {
      const [info = bytes, abbrev = bytes, str = bytes, lineStr = bytes] = unpack(bytes, 4);
      parseTypeLayouts({ info, abbrev, str, lineStr, relocated: () => undefined, source: 'case' });
    },
  },
  {
    name: 'kallsyms',
    cases: 100,
    seeds: once(() => KALLSYMS_SHAPES.map(layOutKallsyms)),
    read: (bytes) => void parseKallsyms(bytes, KALLSYMS_TABLES, 'case'),
  },
  {
    name: 'btf',
    cases: 1000,
    seeds: once(() => sectionsOf(compile('btf.o', C_SOURCE(3), '-gbtf', '-c'), '.BTF')),
    read(bytes) {
      const btf = parseBtf(bytes, 'case');
      for (let id = 1; id < btf.typeCount; id++) void [btf.type(id), btf.sizeOf(id)];
      btf.findField(btf.findType('struct', 'outer') ?? 1, 'in.b');
    },
  },
  {
    name: 'patch',
    cases: 500,
    seeds: () => [patchSeed()],
    refusal: LivegraftError,
    read: (bytes) => void parsePatch(bytes, 'case', patchDigest),
  },
  {
    name: 'decompressors',
    cases: 300,
    seeds: once(() => {
      const code = (sectionsOf('/usr/lib/x86_64-linux-gnu/libc.so.6', '.text')[0] as Uint8Array).slice(
        0,
        30_000,
      );
      const tools: [string, ...string[]][] = [
        ['gzip', '-9'],
        ['xz', '--check=crc32', '--x86', '--lzma2=dict=32MiB'],
        ['xz', '--check=crc32', '--lzma2=dict=1MiB', '--block-size=10000'],
        ['zstd', '-q', '-19', '-c'],
        ['lz4', '-l', '-9', '-c'],
      ];
      return tools.map(([tool, ...args]) => run(tool, args, code));
    }),
    read: (bytes) => void extractVmlinux(bytes, 'case', decompressors),
  },
  ...objectTargets,
  ...memoryTargets,
];
