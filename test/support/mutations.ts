import { firstOf, InstructionTable, OpCode, opOf, secondOf } from '../../src/arch/instruction-table.js';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { DW_RBP, DW_RSP } from '../../src/arch/x86-64/registers.js';
import { hex } from '../../src/base/brand.js';
import { ByteReader } from '../../src/base/byte-reader.js';
import { FrameSection } from '../../src/dwarf/frame-section.js';
import { parseElf } from '../../src/elf/reader.js';
import { readDwarfClaims, readOrcClaims } from '../../src/validate/claim-sources.js';
import type { Claim } from '../../src/validate/claims.js';
import { CodeSpace } from '../../src/validate/code-space.js';
import type { FindingCode } from '../../src/validate/findings.js';
import { relocatedSection } from '../../src/validate/relocated-section.js';
import { Scratch } from '../../src/validate/scratch.js';
import { type ValidateOptions, validateElf } from '../../src/validate/validate-file.js';

/** One byte of a file that is changed, so that a row or an instruction says something else. */
export interface Mutation {
  readonly at: number;
  readonly value: number;
  readonly what: string;
}

export interface MutationRun {
  readonly tried: number;
  readonly missed: readonly string[];
}

const ON_TRUST: ReadonlySet<FindingCode> = new Set([
  'jump-not-followed',
  'jump-table-unbounded',
  'row-assumed',
]);

/** Changes one thing at a time, chosen at random, none twice, and asks whether validate reports something that it did not report before. */
export function runMutations(
  original: Uint8Array,
  source: string,
  mutations: readonly Mutation[],
  options: { readonly seed: number; readonly count: number } & Pick<
    ValidateOptions,
    'kernelRelease' | 'symbols'
  >,
): MutationRun {
  const { seed, count, ...given } = options;
  const bytes = original.slice();
  const scratch = new Scratch();
  const look = () => {
    const { findings } = validateElf(parseElf(bytes, source), { architecture: x86_64, scratch, ...given });
    // That more is taken on trust is no notice of a mistake.
    return new Set(
      findings
        .filter(({ code }) => !ON_TRUST.has(code))
        .map((f) => `${f.code} ${f.place?.section} ${f.place?.address} ${f.derived} ${f.repeats}`),
    );
  };
  const before = look();
  const random = randomOf(seed);
  const missed: string[] = [];
  const left = [...mutations];
  const tried = Math.min(count, left.length);
  for (let i = 0; i < tried; i++) {
    const [mutation] = left.splice(Math.floor(random() * left.length), 1) as [Mutation];
    bytes[mutation.at] = mutation.value;
    const isNoticed = [...look()].some((finding) => !before.has(finding));
    bytes[mutation.at] = original[mutation.at] as number;
    if (!isNoticed) missed.push(`${hex(mutation.at)}: ${mutation.what}`);
  }
  return { tried, missed };
}

/** Lehmer's generator: the same sequence everywhere. */
function randomOf(seed: number): () => number {
  let state = seed * 48271;
  return () => {
    state = (state * 48271) % 0x7fffffff;
    return state / 0x7fffffff;
  };
}

/** `DW_CFA_*` (DWARF 5 section 6.4.2) that are changed, or whose operands are to be passed over. */
const CFA = {
  nop: 0x00,
  advance_loc1: 0x02,
  advance_loc2: 0x03,
  advance_loc4: 0x04,
  restore_state: 0x0b,
  def_cfa: 0x0c,
  def_cfa_register: 0x0d,
  def_cfa_offset: 0x0e,
  def_cfa_expression: 0x0f,
  expression: 0x10,
} as const;
/** What is in the first byte's upper two bits. */
const [ADVANCE_LOC, OFFSET, RESTORE] = [1, 2, 3];

/** Operands of the others: numbers of LEB128, as many as there are letters; a block is a number and as many bytes. */
const OPERANDS: Readonly<Record<number, string>> = {
  5: 'nn', // offset_extended
  6: 'n', // restore_extended
  7: 'n', // undefined
  8: 'n', // same_value
  9: 'nn', // register
  10: '', // remember_state
  [CFA.restore_state]: '',
  [CFA.nop]: '',
  [CFA.def_cfa_expression]: 'b',
  [CFA.expression]: 'nb',
  17: 'nn', // offset_extended_sf
  18: 'nn', // def_cfa_sf
  19: 'n', // def_cfa_offset_sf
  22: 'nb', // val_expression
  46: 'n', // GNU_args_size
};

/**
 * Changes of the call frame instructions that set or move a CFA, or say where a register is saved. That it still is, behind a pop, is
 * true where signals leave that memory alone: no `DW_CFA_restore` is dropped.
 */
export function mutationsOfDwarf(bytes: Uint8Array, source: string): Mutation[] {
  const elf = parseElf(bytes, source);
  const section = elf.findSection('.eh_frame');
  if (section === undefined) throw new Error(`${source} has no .eh_frame`);
  const space = CodeSpace.of(elf, new Scratch());
  // The copy of an object's, with its relocations applied, says which code an entry is of.
  const data = space.isRelocatable
    ? relocatedSection(elf, section, x86_64, 0, (symbol) => space.positionOfSymbol(symbol))
    : section.data;
  const frames = new FrameSection({ bytes: data, address: section.address, kind: 'eh_frame', source });
  const mutations: Mutation[] = [];
  const inFile = section.data.byteOffset - bytes.byteOffset - data.byteOffset;
  for (const fde of frames.entries()) {
    const position = space.isRelocatable ? fde.start : space.positionOf(fde.start);
    if (position === undefined || !space.regionAt(position)?.name.startsWith('.text')) continue;
    const { instructions } = fde;
    const base = instructions.byteOffset + inFile;
    const add = (offset: number, value: number, what: string) => {
      mutations.push({ at: base + offset, value, what: `FDE of ${hex(fde.start)}: ${what}` });
    };
    const reader = new ByteReader(instructions, source);
    while (!reader.atEnd) {
      const at = reader.offset;
      const op = reader.readU8();
      const operand = instructions[at + 1] ?? 0;
      if (op >> 6 === ADVANCE_LOC) {
        for (const delta of [-1, 1]) {
          const next = (op & 0x3f) + delta;
          if (next > 0 && next < 0x40) add(at, 0x40 | next, `advance_loc ${op & 0x3f} to ${next}`);
        }
      } else if (op >> 6 === OFFSET) {
        reader.readUleb128();
        if (operand < 0x7f) add(at + 1, operand + 1, `offset r${op & 0x3f} ${operand} to ${operand + 1}`);
        if (operand > 3 && operand < 0x80)
          add(at + 1, operand - 1, `offset r${op & 0x3f} ${operand} to ${operand - 1}`);
      } else if (op === CFA.advance_loc1 || op === CFA.advance_loc2 || op === CFA.advance_loc4) {
        reader.skip(op === CFA.advance_loc4 ? 4 : op - 1);
        add(at + 1, operand ^ 1, `advance_loc${op === CFA.advance_loc4 ? 4 : op - 1}, the lowest bit`);
      } else if (op === CFA.def_cfa_offset) {
        reader.readUleb128();
        // Of a larger number, these are the low bits.
        const more = operand & 0x80;
        const low = operand & 0x7f;
        if (low + 8 < 0x80) add(at + 1, more | (low + 8), `def_cfa_offset, 8 more`);
        if (low > 8) add(at + 1, more | (low - 8), `def_cfa_offset, 8 less`);
      } else if (op === CFA.def_cfa_register) {
        reader.readUleb128();
        add(at + 1, operand === DW_RSP ? DW_RBP : DW_RSP, `def_cfa_register ${operand}`);
      } else if (op === CFA.def_cfa) {
        reader.readUleb128();
        const offset = reader.offset;
        reader.readUleb128();
        add(offset, (instructions[offset] as number) ^ 8, 'def_cfa offset');
      } else {
        const operands = op >> 6 === RESTORE ? '' : OPERANDS[op];
        if (operands === undefined) throw new Error(`${source}: unknown call frame instruction ${hex(op)}`);
        if (op === CFA.restore_state) add(at, CFA.nop, 'restore_state dropped');
        for (const kind of operands) {
          const number = reader.readUleb128();
          if (kind !== 'b') continue;
          // The value of a block is an address on the frame: breg N with another offset.
          if (reader.remaining > 1 && number >= 2)
            add(reader.offset + 1, (instructions[reader.offset + 1] as number) ^ 8, 'expression, offset');
          reader.skip(number);
        }
      }
    }
  }
  return mutations;
}

/**
 * Changes of instructions that push, pop, move the stack pointer or the frame pointer, where a table claims anything (start-up code
 * of the C runtime has no rows): of the registers that it speaks of.
 */
export function mutationsOfInstructions(
  bytes: Uint8Array,
  source: string,
  kernelRelease?: string,
): Mutation[] {
  const elf = parseElf(bytes, source);
  const space = CodeSpace.of(elf, new Scratch());
  const orc = readOrcClaims(elf, space, x86_64, kernelRelease);
  const claims = (orc ?? readDwarfClaims(elf, space, x86_64, 'eh_frame'))?.claims;
  if (claims === undefined) throw new Error(`${source} has no table`);
  const saved = new Set(orc === undefined ? x86_64.calleeSaved : [x86_64.framePointer]);
  const table = new InstructionTable(1024);
  const mutations: Mutation[] = [];
  for (const region of space.regions) {
    const section = elf.sections[region.sectionIndex];
    if (section === undefined || !region.name.startsWith('.text')) continue;
    const { data } = section;
    table.clear();
    // Behind tables among the code, instructions begin again where a function can.
    for (let at = 0; at < data.length; at = Math.ceil((at + 1) / 16) * 16)
      at = x86_64.sweeper.sweep(data, at, data.length, table);
    for (let i = 0; i < table.count; i++) {
      const at = table.offsets[i] as number;
      const end = at + (table.lengths[i] as number);
      const [claim, next] = [claims.findAt(region.start + at), claims.findAt(region.start + end)];
      if (claim === undefined) continue;
      const effect = table.effects[i] as number;
      const [op, a, b] = [opOf(effect), firstOf(effect), secondOf(effect)];
      const value = table.values[i] as number;
      const change = (offset: number, value: number, what: string) =>
        mutations.push({
          at: section.offset + offset,
          value,
          what: `${what} at ${region.name} ${hex(region.address + at)}`,
        });
      const last = end - 1;
      const lastByte = data[last] as number;
      // Elsewhere the stack pointer may be given back through the frame pointer: a larger frame is right too.
      const isStackBased = claim.cfaRegister === DW_RSP && next?.cfaRegister === DW_RSP;
      // What passes an argument may be any register, as far as frames go.
      const isSaved =
        saved.has(a) && !claim.savedRegisters.includes(a) && (!isStackBased || isSavedLast(next, a));
      if (op === OpCode.push && isSaved)
        // The low bits of the opcode are the register: rbx, rbp, r12 to r15 become another one.
        change(last, lastByte ^ 1, 'push of another register');
      else if (op === OpCode.push && isStackBased) change(last, NOP, 'push dropped');
      // A pop of another register may be harmless, where nothing has changed the right one.
      else if (op === OpCode.pop && (saved.has(a) || isStackBased)) change(last, NOP, 'pop dropped');
      else if (op === OpCode.leave) change(last, NOP, 'leave dropped');
      else if (op === OpCode.add && a === DW_RSP && b === DW_RSP && isStackBased) {
        // An operand of one byte, or the low one of four.
        const operand = Math.abs(value) < 0x80 ? last : last - 3;
        const low = data[operand] as number;
        if (low + 8 < 0x80) change(operand, low + 8, 'stack pointer moved by 8 more');
      } else if (
        op === OpCode.add &&
        a === DW_RBP &&
        b === DW_RSP &&
        value === 0 &&
        next?.cfaRegister === DW_RBP
      )
        change(last, movToOther(data, at, last), 'frame pointer not set');
      else if (op === OpCode.add && a === DW_RSP && b === DW_RBP && end - at === 4 && lastByte + 8 < 0x100)
        change(last, lastByte + 8, 'stack pointer set elsewhere');
    }
  }
  return mutations;
}

const NOP = 0x90;

/** Whether a row says that the last word pushed is what a register was. */
function isSavedLast(claim: Claim, register: number): boolean {
  return claim.savedOffsets[claim.savedRegisters.indexOf(register)] === -claim.cfaOffset;
}

/** The ModRM byte of `mov rbp, rsp` that makes it `mov rbx, rsp`, whichever of the two encodings it has. */
function movToOther(data: Uint8Array, at: number, last: number): number {
  const toRegisterField = data[at + 1] === 0x8b;
  return (data[last] as number) ^ (toRegisterField ? (5 ^ 3) << 3 : 5 ^ 3);
}

const ORC_ENTRY_BYTES = 6;
/** `ORC_REG_SP` and `ORC_REG_BP`. */
const [ORC_SP, ORC_BP] = [5, 4];

/** Changes of the stack offset, the base register and the frame pointer's place of ORC entries that say something. */
export function mutationsOfOrc(bytes: Uint8Array, source: string): Mutation[] {
  const section = parseElf(bytes, source).findSection('.orc_unwind');
  if (section === undefined) throw new Error(`${source} has no .orc_unwind`);
  const base = section.data.byteOffset - bytes.byteOffset;
  const mutations: Mutation[] = [];
  for (let at = 0; at + ORC_ENTRY_BYTES <= section.data.length; at += ORC_ENTRY_BYTES) {
    const registers = section.data[at + 4] as number;
    if ((registers & 15) !== ORC_SP && (registers & 15) !== ORC_BP) continue;
    const add = (offset: number, value: number, what: string) =>
      mutations.push({
        at: base + at + offset,
        value: value & 0xff,
        what: `entry ${at / ORC_ENTRY_BYTES}: ${what}`,
      });
    const spOffset = section.data[at] as number;
    add(0, spOffset + 8, 'stack offset 8 more');
    add(0, spOffset - 8, 'stack offset 8 less');
    add(4, registers ^ 1, 'the other base register');
    if (registers >> 4 !== 0) {
      add(2, (section.data[at + 2] as number) + 8, 'frame pointer saved elsewhere');
      // That it is unchanged would be true as long as it still holds what was saved.
    } else add(4, registers | 0x10, 'frame pointer saved');
  }
  return mutations;
}

/** All that is tried in a file: what its table says, the ORC one where it has both, and its instructions. */
export function mutationsOf(bytes: Uint8Array, source: string, kernelRelease?: string) {
  const rows =
    parseElf(bytes, source).findSection('.orc_unwind') === undefined
      ? { what: 'a call frame instruction', mutations: mutationsOfDwarf(bytes, source) }
      : { what: 'an ORC entry', mutations: mutationsOfOrc(bytes, source) };
  return [
    rows,
    { what: 'a stack instruction', mutations: mutationsOfInstructions(bytes, source, kernelRelease) },
  ] as const;
}
