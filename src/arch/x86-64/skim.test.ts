import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SHF_EXECINSTR } from '../../elf/constants.js';
import { parseElf } from '../../elf/reader.js';
import { InstructionTable, NO_TARGET } from '../instruction-table.js';
import { SkimTable } from '../skim-table.js';
import { skimmer } from './skim.js';
import { sweeper } from './sweep.js';
import { touchesFrame } from './touches.js';

function isStart(skim: SkimTable, at: number): boolean {
  return (((skim.starts[at >>> 5] as number) >>> (at & 31)) & 1) === 1;
}

/** Holds a skim against a sweep of the same bytes, from one byte on where nothing decodes. Returns how many entries the skim has. */
function compare(bytes: Uint8Array, end: number): number {
  const table = new InstructionTable(16);
  const skim = new SkimTable();
  skim.clear(bytes.length);
  for (let at = 0; at < end; ) {
    const stopped = sweeper.sweep(bytes, at, end, table);
    expect(skimmer.skim(bytes, at, end, skim)).toBe(stopped);
    at = stopped + 1;
  }
  const wanted: number[][] = [];
  let starts = 0;
  for (let i = 0; i < table.count; i++) {
    const at = table.offsets[i] as number;
    if (isStart(skim, at)) starts++;
    if (!touchesFrame(table.touches[i] as number)) continue;
    const [target, value] = [table.targets[i] as number, table.values[i] as number];
    wanted.push([
      at,
      (table.flows[i] as number) | ((table.lengths[i] as number) << 4),
      table.effects[i] as number,
      target === NO_TARGET ? value : target,
    ]);
  }
  expect(starts).toBe(table.count);
  let bits = 0;
  for (let at = 0; at < end; at++) if (isStart(skim, at)) bits++;
  expect(bits).toBe(table.count);
  const found = Array.from({ length: skim.count }, (_, entry) => [
    skim.positions[entry] as number,
    skim.flows[entry] as number,
    skim.effects[entry] as number,
    skim.values[entry] as number,
  ]);
  const differs = found.findIndex((row, i) => row.join() !== wanted[i]?.join());
  if (differs >= 0) {
    const at = found[differs]?.[0] ?? 0;
    expect([Buffer.from(bytes.subarray(at, at + 15)).toString('hex'), found[differs]]).toEqual([
      '',
      wanted[differs],
    ]);
  }
  expect(found.length).toBe(wanted.length);
  return skim.count;
}

describe('skimmer', () => {
  it.each(['/usr/lib/x86_64-linux-gnu/libc.so.6', process.execPath])(
    'finds in %s what a sweep finds that touches a frame',
    (path) => {
      const text = parseElf(readFileSync(path), path).sections.find(
        (s) => (s.flags & SHF_EXECINSTR) !== 0 && s.name === '.text',
      );
      const bytes = text?.data.slice(0, 500_000) ?? new Uint8Array();
      expect(compare(bytes, bytes.length)).toBeGreaterThan(10_000);
    },
  );

  it('agrees with the sweep on random bytes, and behind every opcode with every ModRM byte', () => {
    let seed = 4711;
    const next = () => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 16) & 0xff;
    };
    compare(Uint8Array.from({ length: 100_000 }, next), 100_000);
    const slot = 16;
    for (const rex of [0, 0x48, 0x4d]) {
      for (let opcode = 0; opcode < 512; opcode++) {
        const bytes = new Uint8Array(256 * slot + 64).fill(0x90);
        for (let modrm = 0; modrm < 256; modrm++) {
          let at = modrm * slot;
          if (rex !== 0) bytes[at++] = rex;
          if (opcode > 255) bytes[at++] = 0x0f;
          bytes[at++] = opcode & 0xff;
          bytes[at++] = modrm;
          bytes[at] = next();
        }
        compare(bytes, 256 * slot);
      }
    }
  });
});
