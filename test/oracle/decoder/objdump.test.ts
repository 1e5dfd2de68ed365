import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { decoder } from '../../../src/arch/x86-64/decoder.js';
import { vectorEncodingsSource } from './make-vector-encodings.js';
import { disassemble } from './objdump.js';

/** The decoder and its table of vector encodings against binutils' objdump, which was written from the same manuals. */

function random(seed: number) {
  let state = seed;
  return (limit: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % limit;
  };
}

const TAIL = [0x44, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x08];
/** ModRM with a memory operand without and with SIB, and with a register operand. */
const MODRMS = [0x03, 0x0c, 0x45, 0x84, 0xc1, 0xca, 0xd8, 0xf8];

const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** Instructions that are newer than binutils 2.40 (January 2023), by the first bytes of their encodings. */
const NEWER: readonly (readonly [string, RegExp])[] = [
  ['AMX-COMPLEX', /^c4e2..6c/],
  ['AVX-VNNI-INT16', /^c4[0-9a-f]2..d[23]/],
  ['SHA512', /^c4[0-9a-f]2..c[bcd]/],
  ['SM3', /^c4[0-9a-f](2..da|3..de)/],
  ['SM4', /^c4[0-9a-f]2..da/],
];

/** Why both may differ, for what one of them takes and the other does not; undefined when nothing explains it. */
function explain(bytes: Uint8Array, text: string, ours: number): string | undefined {
  const hex = hexOf(bytes);
  if (ours > 0) {
    const newer = NEWER.find(([, pattern]) => pattern.test(hex));
    if (newer !== undefined) return `newer than objdump: ${newer[0]}`;
  }
  const words = text.split(' ');
  const prefix = /^(rex(\.\w+)?|lock|repz|repnz|data16|addr32|[c-gs]s|bnd|notrack|xacquire|xrelease)$/;
  // A REX before another prefix is ignored by processors; objdump shows it as a line of its own.
  if (words.every((word) => prefix.test(word))) return 'objdump shows prefixes alone';
  const opcode = words.find((word) => !prefix.test(word)) ?? '';
  // Other encodings of the same x87 instructions, which processors have kept and compilers never used (AMD64 manual volume 3, table A-10).
  if (
    ours > 0 &&
    /^(..)*?(d9(d[89a-f])|dc(d[0-9a-f])|dd(c[89a-f])|de(d[0-7])|df(c[89a-f]|d[0-9a-f]))/.test(hex) &&
    /bad/.test(text)
  )
    return 'aliases of x87 instructions';
  if (/^bnd(ldx|stx|mov|mk|c[lnu])/.test(words.find((word) => !prefix.test(word)) ?? ''))
    return 'MPX: gone from processors';
  if (ours > 0) {
    if (/^prefetchwt1/.test(opcode)) return 'hints with a register operand do nothing';
    if (/^(..)*f2(4.)?0fb[cd]/.test(hex)) return 'objdump refuses F2h before bsf and bsr, which ignore it';
  } else {
    if (/^vzero(upper|all)/.test(text)) return 'objdump takes any mandatory prefix and W';
    if (/^(ldtilecfg|sttilecfg|tilezero|tilerelease)/.test(text)) return 'objdump takes any ModRM.reg';
    if (/%\?|%cr(1|5|6|7|9|1\d)\b/.test(text)) return 'objdump takes registers that do not exist';
    if (/^getsec/.test(opcode)) return 'objdump takes any mandatory prefix';
    if (/^(66|f2|f3|4[0-9a-f]|2e|64|67)*(66|f2|f3|4[0-9a-f])(2e|64|67)*(c4|c5|62)/.test(hex))
      return 'a prefix that vector encodings refuse';
    if (/^8f/.test(hex) && /^bextr/.test(text)) return 'objdump takes any length';
    if (/\block\b/.test(text)) return 'lock on what can not be locked';
  }
  return undefined;
}

interface Outcome {
  readonly same: number;
  readonly explained: ReadonlyMap<string, number>;
  readonly unexplained: readonly string[];
}

function compare(encodings: readonly Uint8Array[]): Outcome {
  let same = 0;
  const explained = new Map<string, number>();
  const unexplained: string[] = [];
  disassemble(encodings).forEach(({ lengthBytes, text }, i) => {
    const bytes = encodings[i] as Uint8Array;
    const ours = decoder.length(bytes, 0, 15);
    const theirs = /\(bad\)|\{bad|bad\}/.test(text) ? 0 : lengthBytes;
    if (ours === theirs) {
      same++;
      return;
    }
    const why = explain(bytes, text, ours);
    if (why !== undefined) explained.set(why, (explained.get(why) ?? 0) + 1);
    else unexplained.push(`${hexOf(bytes)}: objdump ${theirs} "${text}", we ${ours}`);
  });
  return { same, explained, unexplained };
}

/** For every encoding that the table of vector instructions knows one with a memory and one with a register operand. */
function everyVectorEncoding(): Uint8Array[] {
  const found: Uint8Array[] = [];
  const take = (
    make: (w: number, l: number, vvvv: number, mask: number, modrm: number) => Uint8Array,
    hasMask: boolean,
  ) => {
    for (const isRegister of [false, true]) {
      for (let group = 0; group < 8; group++) {
        const modrm = (isRegister ? 0xc1 : 0x04) | (group << 3);
        const valid = (w: number) => {
          for (const l of [0, 1, 2].slice(0, hasMask ? 3 : 2))
            for (const vvvv of [0, 2])
              for (const mask of hasMask ? [0, 1] : [0]) {
                const bytes = make(w, l, vvvv, mask, modrm);
                if (decoder.length(bytes, 0, 15) > 0) return bytes;
              }
          return undefined;
        };
        for (const w of [0, 1]) {
          const bytes = valid(w);
          if (bytes !== undefined) found.push(bytes);
        }
      }
    }
  };
  for (let pp = 0; pp < 4; pp++) {
    for (let opcode = 0; opcode < 256; opcode++) {
      for (const map of [1, 2, 3]) {
        take(
          (w, l, v, _, modrm) =>
            Uint8Array.of(
              0xc4,
              0xe0 | map,
              (w << 7) | ((~v & 15) << 3) | (l << 2) | pp,
              opcode,
              modrm,
              0x31,
              ...TAIL,
            ),
          false,
        );
      }
      for (const map of [1, 2, 3, 5, 6]) {
        take(
          (w, l, v, mask, modrm) =>
            Uint8Array.of(
              0x62,
              0xf0 | map,
              (w << 7) | ((~v & 15) << 3) | 4 | pp,
              (l << 5) | 8 | mask,
              opcode,
              modrm,
              0x31,
              ...TAIL,
            ),
          true,
        );
      }
      for (const map of pp === 0 ? [8, 9, 10] : []) {
        take(
          (w, l, v, _, modrm) =>
            Uint8Array.of(
              0x8f,
              0xe0 | map,
              (w << 7) | ((~v & 15) << 3) | (l << 2),
              opcode,
              modrm,
              0x31,
              ...TAIL,
            ),
          false,
        );
      }
    }
  }
  return found;
}

describe('the table of vector encodings', () => {
  it('is what its generator makes', () => {
    const path = new URL('../../../src/arch/x86-64/vector-encodings.ts', import.meta.url);
    expect(readFileSync(path, 'utf8')).toBe(vectorEncodingsSource());
  });
});

describe('decoder and objdump', () => {
  it('every vector encoding of the table exists', () => {
    const encodings = everyVectorEncoding();
    expect(encodings.length).toBeGreaterThan(5000);
    const { same, unexplained } = compare(encodings);
    expect(unexplained).toEqual([]);
    expect(same / encodings.length).toBeGreaterThan(0.97);
  });

  it('VEX and XOP: what is not in the table does not exist', () => {
    const next = random(1);
    const pick = () => MODRMS[next(MODRMS.length)] as number;
    const encodings: Uint8Array[] = [];
    for (let opcode = 0; opcode < 256; opcode++) {
      for (const map of [1, 2, 3]) {
        for (let pp = 0; pp < 4; pp++) {
          for (let wl = 0; wl < 4; wl++) {
            const vvvv = next(2) === 0 ? 0x78 : next(16) << 3;
            const third = ((wl & 1) << 7) | vvvv | ((wl >> 1) << 2) | pp;
            encodings.push(Uint8Array.of(0xc4, 0xe0 | map, third, opcode, pick(), 0x31, ...TAIL));
          }
        }
      }
      for (const map of [8, 9, 10]) {
        const third = (next(2) << 7) | 0x78 | (next(2) << 2);
        encodings.push(Uint8Array.of(0x8f, 0xe0 | map, third, opcode, pick(), 0x31, ...TAIL));
      }
    }
    const { same, unexplained } = compare(encodings);
    expect(unexplained).toEqual([]);
    expect(same / encodings.length).toBeGreaterThan(0.97);
  });

  it('any bytes behind any prefixes, in all four maps', () => {
    const next = random(2);
    const prefixes = [0x66, 0xf2, 0xf3, 0x2e, 0x64, 0x67, 0x48, 0x41, 0x44];
    const encodings = Array.from({ length: 8000 }, () => {
      const bytes: number[] = [];
      while (next(3) === 0 && bytes.length < 3) bytes.push(prefixes[next(prefixes.length)] as number);
      const map = [[], [0x0f], [0x0f, 0x38], [0x0f, 0x3a]][next(4)] as number[];
      bytes.push(...map);
      while (bytes.length < 15) bytes.push(next(256));
      return Uint8Array.from(bytes);
    });
    const { same, unexplained } = compare(encodings);
    expect(unexplained).toEqual([]);
    expect(same / encodings.length).toBeGreaterThan(0.9);
  });
});
