import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import iced from 'iced-x86';
import { afterAll, describe, expect, it } from 'vitest';
import { linkAddress } from '../../base/brand.js';
import { STT_FUNC } from '../../elf/constants.js';
import type { ElfFile, ElfSymbol } from '../../elf/elf-file.js';
import { parseElf } from '../../elf/reader.js';
import { GATE_BYTES, type RedirectSite, type StateSlotLocation } from '../architecture.js';
import { redirector } from './redirector.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-redirector-'));
afterAll(() => rmSync(folder, { recursive: true }));
const targets = fileURLToPath(new URL('../../../test/targets/', import.meta.url));

/** Where displaced.c maps memory for copies. */
const COPIES = 0x10000000;
const AROUND = 64;

const program = join(folder, 'displaced');
const gcc = spawnSync(
  'gcc',
  ['-no-pie', '-fno-pie', '-O1', '-o', program, join(targets, 'displaced.c'), join(targets, 'displaced.S')],
  { encoding: 'utf8' },
);
if (gcc.status !== 0) throw new Error(gcc.stderr);
const elf = parseElf(readFileSync(program), program);
const named = new Map(elf.symbols.map((symbol) => [symbol.name, symbol]));

function codeOf(file: ElfFile, symbol: ElfSymbol) {
  const from = symbol.value - AROUND;
  const code = file.bytesAt(linkAddress(from), symbol.sizeBytes + 2 * AROUND);
  return code && { code, functionStart: AROUND };
}

function choose(name: string) {
  const symbol = named.get(name);
  const around = symbol && codeOf(elf, symbol);
  if (symbol === undefined || around === undefined) throw new Error(`no function ${name}`);
  const site = redirector.chooseSite(around.code, around.functionStart, symbol.sizeBytes, symbol.value);
  return { symbol, site, ...around };
}

const toHex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

/** What is written for a redirect, as `redirect-plan.ts` does it: the entry, a hop where there is one, the trampoline. */
function redirect(
  { symbol, site, code, functionStart }: ReturnType<typeof choose>,
  trampoline: number,
  slot: StateSlotLocation | undefined,
  patched: number,
): string[] {
  if ('refused' in site) throw new Error(`${symbol.name}: ${site.refused}`);
  const test = slot === undefined ? undefined : redirector.encodeStateTest(trampoline, patched, slot);
  const below = trampoline + (test?.bytes.length ?? 0);
  const copy = redirector.displace(code, functionStart, site, symbol.value, below);
  if ('refused' in copy) throw new Error(`${symbol.name}: ${copy.refused}`);
  const siteAddress = symbol.value + site.offset;
  const writes = [`${trampoline.toString(16)}=${test ? toHex(test.bytes) : ''}${toHex(copy.bytes)}`];
  const entry = (at: number, to: number, size: 2 | 5) =>
    writes.push(`${at.toString(16)}=${toHex(redirector.encodeJump(at, to, size))}`);
  if (site.hopOffset === undefined) entry(siteAddress, trampoline, 5);
  else {
    entry(symbol.value + site.hopOffset, trampoline, 5);
    entry(siteAddress, symbol.value + site.hopOffset, 2);
  }
  return writes;
}

/** How each function is redirected: by a long jump, by a short one into fill, or not, and why. */
const EXPECTED: Readonly<Record<string, 'jump' | 'hop' | RegExp>> = {
  helper: 'jump',
  plain: 'jump',
  with_endbr: 'jump',
  frame: 'jump',
  rip_load: 'jump',
  rip_store: 'jump',
  rip_byte_immediate: 'jump',
  rip_long_immediate: 'jump',
  rip_address: 'jump',
  rip_vector: 'jump',
  rip_vector_first: 'jump',
  call_first: 'jump',
  call_indirect_memory: 'jump',
  call_behind_push: 'jump',
  call_returns_inside: 'jump',
  branch_to_next: 'hop',
  indirect_call_inside: 'jump',
  jump_tail: 'jump',
  jump_indirect: 'jump',
  jump_short: 'hop',
  branch_short: 'jump',
  branch_parity: 'jump',
  branch_near: 'jump',
  branch_to_other: 'jump',
  loop_forward: 'jump',
  loope_forward: 'jump',
  loopne_forward: 'jump',
  jrcxz_forward: 'jump',
  jecxz_forward: 'jump',
  loop_to_start: 'jump',
  loop_to_start_later: 'jump',
  loop_inside: 'hop',
  loop_at_second: /the jump at offset 5 leads to offset 1, inside its first 2 bytes/,
  loop_inside_far:
    /the jump at offset 6 leads to offset 2, inside its first 5 bytes, and there is no padding/,
  loop_inside_packed: /leads to offset 2, inside its first 5 bytes, and there is no padding/,
  packed_neighbour: 'jump',
  short_three: 'jump',
  short_two: 'jump',
  short_one: 'jump',
  short_packed: /only 3 bytes to place a jump in, and there is no padding/,
  packed_nops: 'jump',
  ends_in_five: 'jump',
  system_call: 'jump',
  system_call_inside: 'hop',
  across_pages: /two pages/,
  hop_at_page_end: 'hop',
  one_byte_of_page: /two pages/,
};

describe('redirects, by execution', () => {
  it.each(Object.entries(EXPECTED))('%s: %s', (name, expected) => {
    const { site } = choose(name);
    if (expected instanceof RegExp) expect(site).toEqual({ refused: expect.stringMatching(expected) });
    else {
      expect(site).toHaveProperty('jumpSizeBytes', expected === 'jump' ? 5 : 2);
      expect((site as RedirectSite).hopOffset === undefined).toBe(expected === 'jump');
    }
  });

  it('covers every function of the program', () => {
    const functions = elf.symbols.filter(
      (s) => s.type === STT_FUNC && s.value >= (named.get('helper')?.value ?? 0),
    );
    const own = functions.map((s) => s.name).filter((name) => !name.startsWith('_'));
    expect(own.sort()).toEqual(Object.keys(EXPECTED).sort());
  });

  it('the displaced copy does what the original does; a patched thread goes to the new version', () => {
    const [table, patched] = spawnSync(program, { encoding: 'utf8' })
      .stdout.trim()
      .split(' ')
      .map((text) => Number.parseInt(text, 16)) as [number, number];
    const slots: Readonly<Record<string, StateSlotLocation | undefined>> = {
      none: undefined,
      gs: { kind: 'gsBase' },
      table: { kind: 'threadPointerTable', table, entries: 64 },
    };
    const names = Object.keys(EXPECTED).filter((name) => !(EXPECTED[name] instanceof RegExp));
    const cases = names.flatMap((name) => Object.keys(slots).map((kind) => ({ name, kind })));
    const lines = cases.map(({ name, kind }, i) => {
      const chosen = choose(name);
      const writes = redirect(chosen, COPIES + i * 256, slots[kind], patched);
      return `${chosen.symbol.value.toString(16)} ${kind} ${writes.join(' ')}`;
    });
    const file = join(folder, 'redirects');
    writeFileSync(file, `${lines.join('\n')}\n`);
    const { stdout, status, signal } = spawnSync(program, [file], { encoding: 'utf8', timeout: 20_000 });
    const results = stdout
      .trim()
      .split('\n')
      .map((line) => line.split(' '));
    if (stdout === '') results.pop();
    // The last line says which function crashed, should one.
    expect([status, signal, cases[results.length]?.name]).toEqual([0, null, undefined]);
    const outcome = results.map(([, before, below, after, replaced], i) => ({
      ...cases[i],
      sameBelow: before === below,
      sameAfter: cases[i]?.kind === 'none' ? before === after : after === replaced,
      differs: before !== replaced,
    }));
    expect(outcome.filter((o) => !o.sameBelow || !o.sameAfter || !o.differs)).toEqual([]);
    expect(outcome.length).toBe(names.length * 3);
  });
});

describe('refusals', () => {
  it('what is out of reach of a 32-bit distance', () => {
    for (const [name, why] of [
      ['rip_load', 'the data it uses is out of reach'],
      ['plain', 'the code it leads to is out of reach'],
      ['call_first', 'the code it leads to is out of reach'],
    ] as const) {
      const { symbol, site, code, functionStart } = choose(name);
      if ('refused' in site) throw new Error(site.refused);
      expect(redirector.displace(code, functionStart, site, symbol.value, symbol.value + 2 ** 33)).toEqual({
        refused: why,
      });
    }
    expect(() => redirector.encodeJump(0, 2 ** 31 + 5, 5)).toThrow(RangeError);
    expect(redirector.encodeJump(0, 2 ** 31 + 4, 5)).toEqual(Uint8Array.of(0xe9, 0xff, 0xff, 0xff, 0x7f));
    expect(() => redirector.encodeJump(0, 130, 2)).toThrow(RangeError);
    expect(redirector.encodeJump(0, 129, 2)).toEqual(Uint8Array.of(0xeb, 0x7f));
  });

  it('code that is no code', () => {
    const bytes = Uint8Array.of(0x90, 0x06, 0x90, 0x90, 0x90, 0x90, 0xc3);
    expect(redirector.chooseSite(bytes, 0, 7, 0x1000)).toEqual({
      refused: "its code can't be decoded at offset 1",
    });
  });

  it('a kernel address on two pages', () => {
    const bytes = Uint8Array.of(0x48, 0x8d, 0x04, 0x37, 0x48, 0x01, 0xf8, 0xc3);
    const page = -0x7000_0000;
    expect(redirector.chooseSite(bytes, 0, 8, page - 3)).toHaveProperty('refused');
    expect(redirector.chooseSite(bytes, 0, 8, page)).toHaveProperty('jumpSizeBytes', 5);
  });

  it('a transaction that would abort into the first bytes; else its fallback is kept', () => {
    // xbegin to offset 6, then to offset 1 of what it began in.
    const xbegin = (to: number) =>
      Uint8Array.of(
        0x90,
        0xc7,
        0xf8,
        to - 7,
        to < 7 ? 0xff : 0,
        to < 7 ? 0xff : 0,
        to < 7 ? 0xff : 0,
        0xc3,
        0x90,
        0x90,
      );
    expect(redirector.chooseSite(xbegin(1), 0, 8, 0x1000)).toEqual({
      refused: expect.stringMatching(/leads to offset 1/),
    });
    const code = xbegin(7);
    const site = redirector.chooseSite(code, 0, 8, 0x1000) as RedirectSite;
    const copy = redirector.displace(code, 0, site, 0x1000, 0x9000);
    if ('refused' in copy) throw new Error(copy.refused);
    const view = new DataView(copy.bytes.buffer, copy.bytes.byteOffset);
    expect(0x9000 + 7 + view.getInt32(3, true)).toBe(0x1007);
  });
});

/** An instruction as iced sees it, with where it leads or what it addresses as absolute numbers. */
function meaning(code: Uint8Array, at: number, address: number) {
  const decoder = new iced.Decoder(64, code.subarray(at, at + 16), iced.DecoderOptions.None);
  decoder.ip = BigInt(address);
  const instruction = decoder.decode();
  const formatter = new iced.Formatter(iced.FormatterSyntax.Gas);
  const isNear = instruction.isJccShortOrNear || instruction.isJmpShortOrNear || instruction.isCallNear;
  const text = isNear
    ? `${iced.Mnemonic[instruction.mnemonic]} ${instruction.nearBranchTarget}`
    : formatter.format(instruction);
  const length = instruction.length;
  for (const object of [instruction, decoder, formatter]) object.free();
  return { text, length };
}

describe('displaced instructions of real functions, by meaning (iced-x86)', () => {
  it.each([
    '/usr/lib/x86_64-linux-gnu/libc.so.6',
    '/usr/lib/x86_64-linux-gnu/libstdc++.so.6',
    process.execPath,
  ])('%s', (path) => {
    const file = parseElf(readFileSync(path), path);
    const all = [...file.symbols, ...file.dynamicSymbols].filter(
      (s) => s.type === STT_FUNC && s.sizeBytes > 0 && s.sectionIndex !== 0,
    );
    const step = Math.max(1, Math.floor(all.length / 1500));
    let moved = 0;
    const refused = new Map<string, number>();
    const wrong: string[] = [];
    for (let i = 0; i < all.length; i += step) {
      const symbol = all[i] as ElfSymbol;
      const around = codeOf(file, symbol);
      if (around === undefined) continue;
      const { code, functionStart } = around;
      const site = redirector.chooseSite(code, functionStart, symbol.sizeBytes, symbol.value);
      const to = symbol.value + 0x1234560;
      const copy =
        'refused' in site ? site : redirector.displace(code, functionStart, site, symbol.value, to);
      if ('refused' in site || 'refused' in copy) {
        const why = ('refused' in copy ? copy.refused : '').replaceAll(/\d+/g, 'N');
        refused.set(why, (refused.get(why) ?? 0) + 1);
        continue;
      }
      moved++;
      const places = copy.map.filter((pair) => pair.original < site.offset + site.displacedSizeBytes);
      for (const { copy: at, original } of places) {
        const a = meaning(code, functionStart + original, symbol.value + original);
        const b = meaning(copy.bytes, at, to + at);
        // A branch inside the displaced bytes leads to the copy.
        const inside = places.some((p) => a.text.endsWith(` ${symbol.value + p.original}`));
        const isLoop = /^(loop|j[er]?cxz)/.test(a.text);
        if (a.text !== b.text && !inside && !isLoop)
          wrong.push(`${symbol.name}+${original}: ${a.text} | ${b.text}`);
      }
      const last = copy.map[copy.map.length - 1];
      if (last?.original === site.offset + site.displacedSizeBytes) {
        const back = meaning(copy.bytes, last.copy, to + last.copy).text;
        if (back !== `Jmp ${symbol.value + last.original}`) wrong.push(`${symbol.name}: back by ${back}`);
      }
    }
    expect(wrong).toEqual([]);
    expect(moved).toBeGreaterThan(1000);
    const refusals = [...refused.values()].reduce((a, b) => a + b, 0);
    // Few real functions can't be redirected.
    expect([Object.fromEntries(refused), refusals / (moved + refusals) < 0.05]).toEqual([
      expect.anything(),
      true,
    ]);
  });
});

describe('encodeStateStore', () => {
  const decode = (bytes: Uint8Array) => {
    const decoder = new iced.Decoder(64, bytes, iced.DecoderOptions.None);
    decoder.ip = 0n;
    const instructions: { at: number; usesGs: boolean; end: number }[] = [];
    while (decoder.canDecode) {
      const at = Number(decoder.ip);
      const instruction = decoder.decode();
      expect(instruction.code).not.toBe(iced.Code.INVALID);
      const isOfGs = [iced.Code.Rdgsbase_r64, iced.Code.Wrgsbase_r64].includes(instruction.code);
      const usesGs =
        isOfGs ||
        instruction.segmentPrefix === iced.Register.GS ||
        instruction.memoryBase === iced.Register.RCX;
      instructions.push({ at, usesGs, end: Number(decoder.ip) });
    }
    return instructions;
  };

  it('knows a way out for every place from which the slot at the GS base is still used', () => {
    const { bytes, valueAt, slotUses } = redirector.encodeStateStore({ kind: 'gsBase' });
    const instructions = decode(bytes);
    const lastUse = Math.max(...instructions.filter(({ usesGs }) => usesGs).map(({ at }) => at));
    expect(slotUses.map(({ at }) => at)).toEqual(
      instructions.filter(({ at }) => at <= lastUse).map(({ at }) => at),
    );
    const later = [...instructions.filter(({ at }) => at > lastUse).map(({ at }) => at), bytes.length];
    for (const { resumeAt } of slotUses) expect(later).toContain(resumeAt);
    expect(instructions.map(({ end }) => end)).toContain(valueAt + 1);
  });

  it('finds the same entry of the table as the state test, and leaves the GS base alone', () => {
    const slot = { kind: 'threadPointerTable', table: 0x7000_0000_0000, entries: 1024 } as const;
    const { bytes, valueAt, slotUses } = redirector.encodeStateStore(slot);
    const instructions = decode(bytes);
    expect(instructions.some(({ usesGs }) => usesGs)).toBe(false);
    expect(slotUses).toEqual([]);
    expect(instructions.map(({ end }) => end)).toContain(valueAt + 1);
    const test = redirector.encodeStateTest(0, 0, slot).bytes;
    // Up to the access, but for how far the jump behind it goes for a thread that has no entry.
    const different = [...bytes.subarray(0, valueAt - 4)].flatMap((byte, i) => (byte === test[i] ? [] : [i]));
    expect(different).toHaveLength(1);
    expect(bytes[(different[0] ?? 0) - 1]).toBe(0x74);
  });
});

describe('encodeBorrowedCall', () => {
  it('calls, keeps the result and the phase, and makes the system call again when it was passed over', () => {
    const [at, callee, record] = [0x7000_0000, 0x7000_1234, 0x7000_3000];
    const { bytes, returningAt } = redirector.encodeBorrowedCall(at, callee, record);
    const decoder = new iced.Decoder(64, bytes, iced.DecoderOptions.None);
    decoder.ip = BigInt(at);
    const formatter = new iced.Formatter(iced.FormatterSyntax.Gas);
    const lines: string[] = [];
    while (decoder.canDecode) {
      const instruction = decoder.decode();
      if (instruction.ip === BigInt(at + returningAt)) lines.push('returning:');
      lines.push(formatter.format(instruction));
    }
    expect(lines).toEqual([
      'call 0x0000000070001234',
      'mov %eax,0x70003004',
      'movl $2,0x70003000',
      'pop %rcx',
      'mov $0xF,%eax',
      'syscall',
      'returning:',
      `jmp 0x00000000${(at + bytes.indexOf(0xb8)).toString(16)}`,
    ]);
  });
});

describe('encodeGate', () => {
  it('leads below, on, or to the new version, by one byte', () => {
    const at = 0x7000_0000;
    const bytes = redirector.encodeGate(at, at + 0x2000, at + 0x40, at - 0x1000);
    expect(bytes).toHaveLength(GATE_BYTES);
    const decoder = new iced.Decoder(64, bytes, iced.DecoderOptions.None);
    decoder.ip = BigInt(at);
    const formatter = new iced.Formatter(iced.FormatterSyntax.Gas);
    const lines: string[] = [];
    while (decoder.canDecode) lines.push(formatter.format(decoder.decode()));
    expect(lines).toEqual(['cmpb $1,0x70002000', 'jb 0x0000000070000040', 'ja 0x000000006FFFF000']);
  });
});

describe('encodeDoorbell', () => {
  it('waits for an answer with the stack pointer where it was, and gives every register back', () => {
    const [at, data, debugState] = [0x7000_0000, 0x7000_1000, 0x7fff_1234_5678];
    const bytes = redirector.encodeDoorbell({ at, data, debugState });
    const decoder = new iced.Decoder(64, bytes, iced.DecoderOptions.None);
    decoder.ip = BigInt(at);
    const formatter = new iced.Formatter(iced.FormatterSyntax.Gas);
    const lines: string[] = [];
    const factory = new iced.InstructionInfoFactory();
    const written = new Set<number>();
    while (decoder.canDecode) {
      const instruction = decoder.decode();
      lines.push(formatter.format(instruction));
      for (const used of factory.info(instruction).usedRegisters()) {
        if (used.access !== iced.OpAccess.Read) written.add(iced.RegisterExt.fullRegister(used.register));
      }
    }
    expect(lines).not.toContain('(bad)');
    const saves = lines.flatMap((line) => /^mov (%r\w+),0x7000(10[4-7]\w)$/.exec(line)?.[1] ?? []);
    const restores = lines.flatMap((line) => /^mov 0x7000(10[4-7]\w),(%r\w+)$/.exec(line)?.[2] ?? []);
    expect(restores).toEqual(saves);
    const names = [...written].map((register) => `%${(iced.Register[register] ?? '').toLowerCase()}`);
    expect(names.filter((name) => !saves.includes(name))).toEqual([]);
    expect(lines[0]).toBe('cmpl $0,0x70001000');
    const end = (at + bytes.length).toString(16).toUpperCase();
    expect(lines[1]).toBe(`je 0x00000000${end}`);
    const read = lines.indexOf('movabs $0x7FFF12345678,%rax');
    expect(lines.slice(read + 1, read + 3)).toEqual(['mov (%rax),%ecx', 'mov %ecx,0x70001018']);
    expect(lines.filter((line) => line === 'syscall')).toHaveLength(3);
    expect(lines.filter((line) => line.startsWith('cmp '))).toEqual([
      'cmp $1,%ecx',
      'cmp 0x7000100C,%eax',
      'cmp $0xFFFFFFFD,%eax',
      'cmp 0x70001004,%edx',
    ]);
  });
});
