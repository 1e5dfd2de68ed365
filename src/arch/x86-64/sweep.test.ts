import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { SHF_EXECINSTR } from '../../elf/constants.js';
import { parseElf } from '../../elf/reader.js';
import { FlowCode, InstructionTable, makeEffect, NO_TARGET, OpCode } from '../instruction-table.js';
import { dwarfMask, effect, findEffect } from './effect.js';
import { flowOf } from './flow.js';
import { hasRelativeTarget, immediate } from './operands.js';
import { scan, scanInstruction } from './scanner.js';
import { sweeper } from './sweep.js';

/** What the slow path says of the instruction at `at`, undefined for none. */
function expected(bytes: Uint8Array, at: number, end: number): readonly number[] | undefined {
  if (!scanInstruction(bytes, at, end)) return undefined;
  findEffect(scan);
  const { op } = effect;
  const hasRegisters =
    op >= OpCode.push && op < OpCode.leave && op !== OpCode.pushOther && op !== OpCode.popOther;
  return [
    scan.lengthBytes,
    FlowCode[flowOf(scan)],
    hasRelativeTarget(scan) ? at + scan.lengthBytes + immediate(scan) : NO_TARGET,
    makeEffect(op, hasRegisters ? effect.a : 0, hasRegisters ? effect.b : 0, dwarfMask(effect.writes)),
    op === OpCode.none ? 0 : effect.value,
  ];
}

function row(table: InstructionTable, i: number): readonly number[] {
  const { lengths, flows, targets, effects, values } = table;
  return [lengths, flows, targets, effects, values].map((column) => column[i] as number);
}

/** Sweeps everything, one byte on where nothing decodes. Returns how many instructions it held against the slow path. */
function compare(bytes: Uint8Array, start: number, end: number): number {
  const table = new InstructionTable(16);
  for (let at = start; at < end; ) {
    const stopped = sweeper.sweep(bytes, at, end, table);
    if (stopped < end) expect(expected(bytes, stopped, end)).toBeUndefined();
    at = stopped + 1;
  }
  for (let i = 0; i < table.count; i++) {
    const at = table.offsets[i] as number;
    const [found, wanted] = [row(table, i), expected(bytes, at, end)];
    if (wanted === undefined || found.some((value, column) => value !== wanted[column])) {
      expect([Buffer.from(bytes.subarray(at, at + 15)).toString('hex'), found]).toEqual(['', wanted]);
    }
  }
  return table.count;
}

describe('sweeper', () => {
  it.each(['/usr/lib/x86_64-linux-gnu/libc.so.6', process.execPath])(
    'says of %s what the decoder says of each instruction',
    (path) => {
      const text = parseElf(readFileSync(path), path).sections.find(
        (s) => (s.flags & SHF_EXECINSTR) !== 0 && s.name === '.text',
      );
      const bytes = text?.data.subarray(0, 2_000_000) ?? new Uint8Array();
      expect(compare(bytes, 0, bytes.length)).toBeGreaterThan(100_000);
    },
  );

  it('agrees with the decoder on random bytes, and behind every one and two-byte opcode', () => {
    let seed = 99;
    const next = () => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 16) & 0xff;
    };
    const random = Uint8Array.from({ length: 200_000 }, next);
    compare(random, 0, random.length);
    const table = new InstructionTable(64);
    const bytes = new Uint8Array(64).fill(0x90);
    for (const rex of [0x00, 0x48, 0x41, 0x4d]) {
      for (let i = 0; i < 512; i++) {
        let at = 0;
        if (rex !== 0) bytes[at++] = rex;
        if (i > 255) bytes[at++] = 0x0f;
        bytes[at++] = i & 0xff;
        for (let modrm = 0; modrm < 256; modrm += rex === 0 || rex === 0x48 ? 1 : 7) {
          bytes[at] = modrm;
          bytes[at + 1] = next();
          table.clear();
          sweeper.sweep(bytes, 0, bytes.length, table);
          const wanted = expected(bytes, 0, bytes.length);
          const found = table.count === 0 ? undefined : row(table, 0);
          if (wanted?.some((value, column) => value !== found?.[column]) ?? found !== undefined) {
            expect([Buffer.from(bytes.subarray(0, 15)).toString('hex'), found]).toEqual(['', wanted]);
          }
        }
      }
    }
  });
});
