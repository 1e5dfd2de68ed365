/**
 * The legacy opcode maps of 64-bit mode. Only data is exported: the bundle holds the finished tables (`scripts/build.mjs`).
 *
 * Facts from the opcode maps of the Intel SDM (volume 2, appendix A, tables) and of the AMD64 manual
 * (volume 3, appendix A). Held against iced-x86 for every opcode, ModRM byte and mandatory prefix by
 * `agreement.test.ts`.
 */
import {
  FAST_MODRM,
  HAS_MODRM,
  IMMEDIATE_MASK,
  Immediate,
  INVALID,
  IS_PREFIX,
  isPermitted,
  RESTRICTED,
  SLOW,
  STRIDE,
} from './opcodes.js';

const CELL: Readonly<Record<string, number>> = {
  '.': 0,
  b: Immediate.byte,
  w: Immediate.word,
  z: Immediate.operand,
  v: Immediate.full,
  e: Immediate.wordByte,
  o: Immediate.memoryOffset,
  j: Immediate.relative8,
  J: Immediate.relative32,
  m: HAS_MODRM,
  mb: HAS_MODRM | Immediate.byte,
  mz: HAS_MODRM | Immediate.operand,
  mt: HAS_MODRM | Immediate.testByte,
  mT: HAS_MODRM | Immediate.testOperand,
  mx: HAS_MODRM | Immediate.extract,
  P: IS_PREFIX,
  x: INVALID,
};

/**
 * One row of text per 16 opcodes. `m` ModRM; `b w z v` immediates; `e` enter; `o` memory offset; `j J` relative
 * targets of 8 and 32 bits; `P` a prefix or an escape; `x` no instruction. `A*n` stands for n times A.
 */
function parseMap(rows: readonly string[]): Uint8Array {
  const cells = rows.flatMap((row) =>
    row
      .trim()
      .split(/\s+/)
      .flatMap((token) => {
        const [cell = '', count = '1'] = token.split('*');
        const value = CELL[cell];
        if (value === undefined) throw new Error(`internal error: opcode cell ${token}`);
        return new Array<number>(Number(count)).fill(value);
      }),
  );
  if (cells.length !== 256) throw new Error(`internal error: opcode map of ${cells.length} cells`);
  return Uint8Array.from(cells);
}

/**
 * Which encodings of restricted opcodes exist, per map. Clauses are separated by commas; each names the mandatory
 * prefixes it speaks of (`n` none, `6` 66h, `3` F3h, `2` F2h, `*` all four), then the forms: `m` memory and `r` register
 * operands, with the permitted values of ModRM.reg as digits (none: all eight), or `x` and one ModRM byte in hex.
 */
type RestrictionText = Readonly<Record<string, string>>;

function parseRestrictions(map: Uint8Array, text: RestrictionText): ReadonlyArray<Uint8Array | undefined> {
  const table: (Uint8Array | undefined)[] = new Array<undefined>(256).fill(undefined);
  for (const [opcodes, clauses] of Object.entries(text)) {
    for (const opcode of expandOpcodes(opcodes)) {
      const allowed = new Uint8Array(4 * STRIDE);
      for (const clause of clauses.split(',')) addClause(allowed, clause.trim());
      table[opcode] = allowed;
      map[opcode] = (map[opcode] ?? 0) | RESTRICTED;
    }
  }
  return table;
}

function expandOpcodes(text: string): number[] {
  return text.split(' ').flatMap((part) => {
    const [first = '', last = first] = part.split('-');
    const from = Number.parseInt(first, 16);
    const to = Number.parseInt(last, 16);
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  });
}

function addClause(allowed: Uint8Array, clause: string): void {
  const [prefixes = '', forms = ''] = clause.split(':');
  const or = (at: number, bits: number) => {
    allowed[at] = (allowed[at] ?? 0) | bits;
  };
  for (const prefix of prefixes === '*' ? 'n632' : prefixes) {
    const base = 'n632'.indexOf(prefix) * STRIDE;
    for (const form of forms.trim().split(' ')) {
      if (form.startsWith('x')) {
        const modrm = Number.parseInt(form.slice(1), 16);
        or(base + 1 + ((modrm >> 3) & 7), 1 << (modrm & 7));
        continue;
      }
      for (const digit of form.length === 1 ? '01234567' : form.slice(1)) {
        if (form.startsWith('m')) or(base, 1 << Number(digit));
        else or(base + 1 + Number(digit), 0xff);
      }
    }
  }
}

export const ONE_BYTE = parseMap([
  'm*4 b z x x  m*4 b z x P', // 00
  'm*4 b z x x  m*4 b z x x',
  'm*4 b z P x  m*4 b z P x',
  'm*4 b z P x  m*4 b z P x',
  'P*16', // 40: REX
  '.*16',
  'x x P m P P P P  z mz b mb .*4', // 60
  'j*16',
  'mb mz x mb m*11 P', // 80
  '.*8  . . x .*5',
  'o*4 .*4  b z .*6', // a0
  'b*8  v*8',
  'mb mb w . P P mb mz  e . w . . b x .', // c0
  'm*4 x x x .  m*8',
  'j*4 b*4  J J x j .*4', // e0
  'P . P P . . mt mT  .*6 m m',
]);

export const ONE_BYTE_RESTRICTIONS = parseRestrictions(ONE_BYTE, {
  '8c': '*:m012345 r012345',
  '8d': '*:m',
  '8e': '*:m02345 r02345',
  '8f': '*:m0 r0',
  c6: '*:m0 r0 xf8',
  c7: '*:m0 r0 xf8',
  d9: '*:m0234567 r01367 xd0 xe0 xe1 xe4 xe5 xe8 xe9 xea xeb xec xed xee',
  da: '*:m r0123 xe9',
  db: '*:m012357 r0123 xe0 xe1 xe2 xe3 xe4 r56',
  dd: '*:m0123467 r012345',
  de: '*:m r012 xd9 r4567',
  df: '*:m r0123 xe0 r56',
  fe: '*:m01 r01',
  ff: '*:m0123456 r01246',
});

export const TWO_BYTE = parseMap([
  'm m m m x . . .  . . x . x m . P', // 00
  'm*16',
  'm*4 x*4  m*8', // 20
  '.*6 x .  P x P x*5',
  'm*16', // 40
  'm*16',
  'm*16', // 60
  'mb*4 m*3 .  mx m x x m*4',
  'J*16', // 80
  'm*16',
  '. . . m mb m m m  . . . m mb m m m', // a0
  'm*8  m m mb m*5',
  'm m mb m mb mb mb m  .*8', // c0
  'm*16',
  'm*16', // e0
  'm*16',
]);

export const TWO_BYTE_RESTRICTIONS = parseRestrictions(TWO_BYTE, {
  '00': '*:m012345 r012345, 2:m6 r6',
  '01':
    '*:m0123467 r46 xf8 xf9, 3:m5, ' +
    'n:xc0 xc1 xc2 xc3 xc4 xc5 xc6 xc7 xc8 xc9 xca xcb xcf xd0 xd1 xd4 xd5 xd6 xd7, ' +
    '2:xc6 xca, 3:xc6 xca, 6:xcc xcd xce xcf, ' +
    '*:xd8 xd9 xda xdb xdc xdd xde xdf, ' +
    'n:xe8 xee xef, 2:xe8 xe9, 3:xe8 xea xec xed xee xef, ' +
    'n:xfa xfb xfd xfe xff, 3:xfa xfd xfe xff, 2:xfe xff, *:xfc',
  '10 11': '*:m r',
  '12': 'n:m r, 6:m, 3:m r, 2:m r',
  '13 17': 'n6:m',
  '14 15': 'n6:m r',
  '16': 'n:m r, 6:m, 3:m r',
  '28 29 2e 2f': 'n6:m r',
  '2a 2c 2d': '*:m r',
  '2b': '*:m',
  '50': 'n6:r',
  '52 53': 'n3:m r',
  '54-57': 'n6:m r',
  '5b': 'n63:m r',
  '60-6b 6e': 'n6:m r',
  '6c 6d': '6:m r',
  '6f 7f 7e': 'n63:m r',
  '71 72': 'n6:r246',
  '73': 'n:r26, 6:r2367',
  '74-76': 'n6:m r',
  '78': 'n:m r, 6:r0, 2:r',
  '79': 'n:m r, 62:r',
  '7c 7d': '62:m r',
  a6: '3:r1234567',
  a7: '*:r0, 3:r1234567',
  ae: 'n:m r567, 6:m67 r6, 3:m46 r0123456, 2:r6',
  b2: '*:m',
  'b4 b5': '*:m',
  b8: '3:m r',
  ba: '*:m4567 r4567',
  c3: 'n:m',
  c4: 'n6:m r',
  c5: 'n6:r',
  c6: 'n6:m r',
  c7: '*:m1, n:m34567 r67, 6:m6 r67, 3:m6 r67',
  d0: '62:m r',
  'd1-d5': 'n6:m r',
  d6: '6:m r, 32:r',
  d7: 'n6:r',
  'd8-e5': 'n6:m r',
  e6: '632:m r',
  e7: 'n6:m',
  'e8-ef': 'n6:m r',
  f0: '2:m',
  'f1-f6': 'n6:m r',
  f7: 'n6:r',
  'f8-fe': 'n6:m r',
});

/** 0F 38: all have a ModRM byte and no immediate; opcodes that are not listed do not exist. */
export const MAP_0F38 = new Uint8Array(256).fill(INVALID | HAS_MODRM);
export const MAP_0F38_RESTRICTIONS = parseRestrictions(MAP_0F38, {
  '00-0b 1c-1e': 'n6:m r',
  '10 14 15 17 20-25 28 29 2b 30-35 37-41': '6:m r',
  '2a 80-82': '6:m',
  'c8-cd': 'n:m r',
  'cf db': '6:m r',
  d8: '3:m0123',
  dc: '6:m r, 3:m r',
  'dd-df': '6:m r, 3:m',
  'f0 f1': 'n6:m, 2:m r',
  f5: '6:m',
  f6: 'n:m, 63:m r',
  f8: '632:m',
  f9: 'n:m',
  'fa fb': '3:r',
  fc: '*:m',
});

/** 0F 3A: all have a ModRM byte and an 8-bit immediate. */
export const MAP_0F3A = new Uint8Array(256).fill(INVALID | HAS_MODRM | Immediate.byte);
export const MAP_0F3A_RESTRICTIONS = parseRestrictions(MAP_0F3A, {
  '08-0e 14-17 20-22 40-42 44 60-63 ce cf df': '6:m r',
  '0f': 'n6:m r',
  cc: 'n:m r',
  f0: '3:xc0',
});

for (const map of [MAP_0F38, MAP_0F3A]) {
  for (let opcode = 0; opcode < 256; opcode++) {
    const cell = map[opcode] ?? 0;
    if (cell & RESTRICTED) map[opcode] = cell & ~INVALID;
  }
}

/** Suffixes of 0F 0F (3DNow!): AMD64 manual volume 3, table A-13. */
export const IS_3DNOW_SUFFIX = new Uint8Array(256);
for (const suffix of [
  0x0c, 0x0d, 0x1c, 0x1d, 0x8a, 0x8e, 0x90, 0x94, 0x96, 0x97, 0x9a, 0x9e, 0xa0, 0xa4, 0xa6, 0xa7, 0xaa, 0xae,
  0xb0, 0xb4, 0xb6, 0xb7, 0xbb, 0xbf,
]) {
  IS_3DNOW_SUFFIX[suffix] = 1;
}

/** Length of opcode and immediate with {@link FAST_MODRM}, or {@link SLOW}. */
export const FAST_ONE_BYTE = makeFastTable(ONE_BYTE, 0);
export const FAST_TWO_BYTE = makeFastTable(TWO_BYTE, 1, TWO_BYTE_RESTRICTIONS);

/** Opcodes that exist with any ModRM byte without a mandatory prefix, and whose size no prefix but 66h changes. */
function makeFastTable(
  map: Uint8Array,
  escapeBytes: number,
  restrictions?: ReadonlyArray<Uint8Array | undefined>,
): Uint8Array {
  const sizes = new Map<number, number>([
    [Immediate.none, 0],
    [Immediate.byte, 1],
    [Immediate.word, 2],
    [Immediate.operand, 4],
    [Immediate.relative8, 1],
    [Immediate.relative32, 4],
  ]);
  return map.map((cell, opcode) => {
    const size = sizes.get(cell & IMMEDIATE_MASK);
    if (size === undefined || cell & (INVALID | IS_PREFIX)) return SLOW;
    if (cell & RESTRICTED) {
      const restriction = restrictions?.[opcode];
      if (restriction === undefined) return SLOW;
      for (let modrm = 0; modrm < 256; modrm++) if (!isPermitted(restriction, 0, modrm)) return SLOW;
    }
    if (escapeBytes === 1 && opcode >= 0x20 && opcode <= 0x23) return SLOW;
    return 1 + escapeBytes + size + (cell & HAS_MODRM);
  });
}
