import { firstOf, InstructionTable, OpCode, opOf, secondOf } from '../../src/arch/instruction-table.js';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { DW_RSP } from '../../src/arch/x86-64/registers.js';
import { FrameSection } from '../../src/dwarf/frame-section.js';
import { parseElf } from '../../src/elf/reader.js';
import type { FindingCode } from '../../src/validate/findings.js';
import { validateElf } from '../../src/validate/validate-file.js';

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
  options: { readonly seed: number; readonly count: number; readonly kernelRelease?: string },
): MutationRun {
  const bytes = original.slice();
  const look = () => {
    const { findings } = validateElf(parseElf(bytes, source), {
      architecture: x86_64,
      ...(options.kernelRelease !== undefined && { kernelRelease: options.kernelRelease }),
    });
    // That more is taken on trust is no notice of a mistake.
    return new Set(
      findings
        .filter(({ code }) => !ON_TRUST.has(code))
        .map((f) => `${f.code} ${f.place?.section} ${f.place?.address} ${f.derived} ${f.repeats}`),
    );
  };
  const before = look();
  const random = randomOf(options.seed);
  const missed: string[] = [];
  const left = [...mutations];
  const tried = Math.min(options.count, left.length);
  for (let i = 0; i < tried; i++) {
    const [mutation] = left.splice(Math.floor(random() * left.length), 1) as [Mutation];
    bytes[mutation.at] = mutation.value;
    const isNoticed = [...look()].some((finding) => !before.has(finding));
    bytes[mutation.at] = original[mutation.at] as number;
    if (!isNoticed) missed.push(`0x${mutation.at.toString(16)}: ${mutation.what}`);
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

/** Changes of the call frame instructions that set or move a CFA, or say where a register is saved. */
export function mutationsOfDwarf(bytes: Uint8Array, source: string): Mutation[] {
  const elf = parseElf(bytes, source);
  const section = elf.findSection('.eh_frame');
  if (section === undefined) throw new Error(`${source} has no .eh_frame`);
  const frames = new FrameSection({
    bytes: section.data,
    address: section.address,
    kind: 'eh_frame',
    source,
  });
  const mutations: Mutation[] = [];
  for (const fde of frames.entries()) {
    if (
      elf.sections.find((s) => s.address <= fde.start && fde.start < s.address + s.sizeBytes)?.name !==
      '.text'
    )
      continue;
    const { instructions } = fde;
    const base = instructions.byteOffset - bytes.byteOffset;
    const add = (offset: number, value: number, what: string) => {
      mutations.push({ at: base + offset, value, what: `FDE of 0x${fde.start.toString(16)}: ${what}` });
    };
    for (let at = 0; at < instructions.length; ) {
      const op = instructions[at] as number;
      const operand = instructions[at + 1] ?? 0;
      if (op >> 6 === 1) {
        // DW_CFA_advance_loc
        for (const delta of [-1, 1]) {
          const next = (op & 0x3f) + delta;
          if (next > 0 && next < 0x40) add(at, 0x40 | next, `advance_loc ${op & 0x3f} to ${next}`);
        }
        at += 1;
      } else if (op >> 6 === 2) {
        // DW_CFA_offset
        if (operand < 0x7f) add(at + 1, operand + 1, `offset r${op & 0x3f} ${operand} to ${operand + 1}`);
        if (operand > 3) add(at + 1, operand - 1, `offset r${op & 0x3f} ${operand} to ${operand - 1}`);
        at += 2;
      } else if (op === 0x0e) {
        // DW_CFA_def_cfa_offset
        if (operand >= 0x80) break;
        if (operand + 8 < 0x80) add(at + 1, operand + 8, `def_cfa_offset ${operand} to ${operand + 8}`);
        if (operand > 8) add(at + 1, operand - 8, `def_cfa_offset ${operand} to ${operand - 8}`);
        at += 2;
      } else if (op === 0x0d) {
        // DW_CFA_def_cfa_register
        add(at + 1, operand === 7 ? 6 : 7, `def_cfa_register ${operand}`);
        at += 2;
      } else if (op === 0x0a || op === 0x0b) {
        if (op === 0x0b) add(at, 0x00, 'restore_state dropped');
        at += 1;
      } else if (op === 0x00) at += 1;
      else if (op >> 6 === 3) at += 1;
      else if (op === 0x02) at += 2;
      else if (op === 0x03) at += 3;
      else if (op === 0x0c) {
        add(at + 2, (instructions[at + 2] as number) ^ 8, 'def_cfa offset');
        at += 3;
      } else break;
    }
  }
  return mutations;
}

const CALLEE_SAVED = new Set(x86_64.calleeSaved);

/** Where a file's `.eh_frame` claims anything: start-up code of the C runtime has no rows. */
function coveredBy(bytes: Uint8Array, source: string): (address: number) => boolean {
  const section = parseElf(bytes, source).findSection('.eh_frame');
  if (section === undefined) return () => true;
  const options = { bytes: section.data, address: section.address, kind: 'eh_frame', source } as const;
  const ranges = [...new FrameSection(options).entries()];
  return (address) => ranges.some((fde) => fde.start <= address && address < fde.end);
}

/** Changes of instructions that push, pop, move the stack pointer or the frame pointer. `only`: registers to push and pop. */
export function mutationsOfInstructions(
  bytes: Uint8Array,
  source: string,
  only: ReadonlySet<number> = CALLEE_SAVED,
  isCovered: (address: number) => boolean = coveredBy(bytes, source),
  /** Elsewhere the stack pointer may be given back through the frame pointer: a larger frame is right too. */
  isStackBased: (address: number) => boolean = () => true,
): Mutation[] {
  const elf = parseElf(bytes, source);
  const text = elf.findSection('.text');
  if (text === undefined) throw new Error(`${source} has no .text`);
  const table = new InstructionTable(1024);
  x86_64.sweeper.sweep(text.data, 0, text.data.length, table);
  const base = text.data.byteOffset - bytes.byteOffset;
  const mutations: Mutation[] = [];
  for (let i = 0; i < table.count; i++) {
    const at = table.offsets[i] as number;
    const end = at + (table.lengths[i] as number) - 1;
    const effect = table.effects[i] as number;
    const a = firstOf(effect);
    const op = opOf(effect);
    const last = text.data[end] as number;
    const add = (value: number, what: string) =>
      mutations.push({ at: base + end, value, what: `${what} at 0x${(text.address + at).toString(16)}` });
    if (!isCovered(text.address + at)) continue;
    // The low bits of the opcode are the register: rbx, rbp, r12 to r15 become another one.
    if (op === OpCode.push && only.has(a)) add(last ^ 1, 'push of another register');
    // A pop of another register may be harmless, where nothing has changed the right one.
    else if (op === OpCode.pop && only.has(a)) add(0x90, 'pop dropped');
    else if (
      op === OpCode.add &&
      isStackBased(text.address + at) &&
      a === DW_RSP &&
      secondOf(effect) === DW_RSP &&
      Math.abs(table.values[i] as number) < 0x78
    ) {
      // add or sub of a byte to rsp
      if (last + 8 < 0x80) add(last + 8, 'stack pointer moved by 8 more');
    } else if (op === OpCode.leave) add(0x90, 'leave dropped');
  }
  return mutations;
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
