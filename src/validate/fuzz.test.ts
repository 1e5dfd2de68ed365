import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { ParseError } from '../base/errors.js';
import { parseElf } from '../elf/reader.js';
import { encodeProof, parseProof } from './proof.js';
import { Scratch } from './scratch.js';
import { validateElf } from './validate-file.js';

/**
 * Damaged files: each must give findings or a ParseError. `FUZZ_CASES=100000 npx vitest run --project unit src/validate/fuzz`
 * runs longer, `FUZZ_SEED` from elsewhere. What ever failed is kept in `test/fixtures/fuzz` and tried first.
 */
const CASES = Number(process.env.FUZZ_CASES ?? 1500);
const SEED = Number(process.env.FUZZ_SEED ?? 1);
const HERE = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const CORPUS = HERE('../../test/corpus/validate');
const FIXTURES = HERE('../../test/fixtures/fuzz');

const scratch = new Scratch();
const folder = mkdtempSync(join(tmpdir(), 'livegraft-fuzz-'));
let seeds: Uint8Array[] = [];

beforeAll(() => {
  // Small objects with every kind of table; one larger one with everything a linker makes.
  for (const file of readdirSync(CORPUS).filter((name) => name.endsWith('.s'))) {
    const object = join(folder, `${file}.o`);
    expect(spawnSync('as', ['-o', object, join(CORPUS, file)]).status).toBe(0);
    seeds.push(new Uint8Array(readFileSync(object)));
  }
  const library = '/usr/lib/x86_64-linux-gnu/libdl.so.2';
  if (existsSync(library)) seeds = [...seeds, ...Array(10).fill(new Uint8Array(readFileSync(library)))];
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function randomOf(seed: number): (below: number) => number {
  let state = (seed * 48271) % 0x7fffffff;
  return (below) => {
    state = (state * 48271) % 0x7fffffff;
    return state % below;
  };
}

const WORDS = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

/** Flips bytes, plants absurd words, cuts, repeats: where headers are, more often. */
function damage(original: Uint8Array, random: (below: number) => number): Uint8Array {
  let bytes = original.slice();
  for (let i = 1 + random(6); i > 0; i--) {
    const at =
      random(3) === 0
        ? random(64)
        : random(3) === 0
          ? bytes.length - 1 - random(Math.min(bytes.length, 1200))
          : random(bytes.length);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    switch (random(6)) {
      case 0:
        bytes = bytes.slice(0, Math.max(1, random(bytes.length)));
        break;
      case 1:
      case 2:
        if (at + 4 <= bytes.length) view.setUint32(at, WORDS[random(WORDS.length)] as number, true);
        break;
      case 3:
        bytes.copyWithin(at, random(bytes.length), Math.min(bytes.length, at + 64));
        break;
      default:
        if (at < bytes.length) bytes[at] = random(256);
    }
    if (bytes.length < 8) break;
  }
  return bytes;
}

/** Throws whatever is not the outcome that bad input may have. */
function tryFile(bytes: Uint8Array, name: string): 'refused' | 'validated' {
  try {
    const elf = parseElf(bytes, name);
    const result = validateElf(elf, {
      architecture: x86_64,
      kernelRelease: '6.1.0',
      sources: ['dwarf', 'debug-frame', 'orc', 'frame-pointer'],
      agree: [['dwarf', 'frame-pointer']],
      scratch,
    });
    const proof = encodeProof(result, 'dwarf');
    if (proof !== undefined) parseProof(proof, name);
    return 'validated';
  } catch (error) {
    if (error instanceof ParseError) return 'refused';
    throw error;
  }
}

describe('damaged files', () => {
  it('that once failed do so no more', () => {
    for (const file of existsSync(FIXTURES) ? readdirSync(FIXTURES) : []) {
      tryFile(new Uint8Array(readFileSync(join(FIXTURES, file))), file);
    }
  });

  it('give findings or a clear error', () => {
    const random = randomOf(SEED);
    const outcomes = { refused: 0, validated: 0 };
    for (let i = 0; i < CASES; i++) {
      const bytes = damage(seeds[random(seeds.length)] as Uint8Array, random);
      try {
        outcomes[tryFile(bytes, `case ${i}`)]++;
      } catch (error) {
        throw new Error(
          `case ${i} of seed ${SEED}, ${bytes.length} bytes: ${Buffer.from(bytes).toString('base64')}`,
          { cause: error },
        );
      }
    }
    expect(outcomes.refused).toBeGreaterThan(CASES / 20);
    expect(outcomes.validated).toBeGreaterThan(CASES / 20);
  });

  it('whose sections share their code are refused, whatever they would add up to', () => {
    const original = seeds[0] as Uint8Array;
    const bytes = original.slice();
    const view = new DataView(bytes.buffer);
    const headers = Number(view.getBigUint64(0x28, true));
    // Every section is executable, and all of the file.
    for (let i = 1; i < view.getUint16(0x3c, true); i++) {
      const at = headers + i * 64;
      if (view.getUint32(at + 4, true) !== 1) continue;
      view.setBigUint64(at + 8, 6n, true);
      view.setBigUint64(at + 24, 0n, true);
      view.setBigUint64(at + 32, BigInt(bytes.length), true);
    }
    expect(tryFile(bytes, 'overlapping')).toBe('refused');
  });

  it('of proofs are refused', () => {
    const library = seeds[seeds.length - 1] as Uint8Array;
    const proof = encodeProof(validateElf(parseElf(library, 'l'), { architecture: x86_64 }), 'dwarf');
    if (proof === undefined) throw new Error('no proof');
    expect(parseProof(proof, 'p')).toBeDefined();
    const random = randomOf(SEED + 1);
    for (let i = 0; i < 500; i++) {
      const bytes = damage(proof, random);
      try {
        parseProof(bytes, 'p');
      } catch (error) {
        expect(error).toBeInstanceOf(ParseError);
      }
    }
  });
});
