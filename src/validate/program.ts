import type { Architecture } from '../arch/architecture.js';
import {
  FlowCode,
  type InstructionTable,
  isInert,
  NO_TARGET,
  TOUCHES_ALL,
} from '../arch/instruction-table.js';
import { SHT_RELA, STT_FUNC, STT_NOTYPE } from '../elf/constants.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import { externalTarget, symbolIndexOfTarget } from './external-targets.js';
import { bindFarTransfers } from './far-transfers.js';
import { bindSlotCalls, directFlowOf, LinkageSlots, readLinkageNames } from './linkage-slots.js';
import { lowerBound, PositionIndex } from './position-index.js';
import type { Scratch } from './scratch.js';

/** A function as symbols or tables know it. */
export interface CodeFunction {
  readonly name: string | undefined;
  readonly start: number;
  readonly end: number;
  /** A part that was split off another function (`f.cold`): it is jumped to in the middle of a frame. */
  readonly isPart: boolean;
  /** The source tells functions and labels apart by nothing: kallsyms. */
  readonly mayBeLabel?: boolean;
}

/** The instructions of a file with their targets resolved. */
export interface Program {
  readonly space: CodeSpace;
  readonly table: InstructionTable;
  readonly index: PositionIndex;
  /** Index of the instruction that a jump, branch or call leads to, -1 outside of the decoded code. */
  readonly targetIndexes: Int32Array;
  /** Sorted by start, not overlapping. */
  readonly functions: readonly CodeFunction[];
  /** Function starts as positions. */
  readonly functionStarts: Pick<ReadonlySet<number>, 'has'>;
  /** 1 for each instruction that lies at one of {@link functionStarts}. */
  readonly isEntry: Uint8Array;
  /** Stretches where bytes were no instructions, as positions. */
  readonly undecoded: readonly { readonly start: number; readonly end: number }[];
  readonly elf: ElfFile;
  /** Names of the dynamic symbols that entries of procedure linkage tables lead to, by position. */
  readonly linkageNames: ReadonlyMap<number, string>;
  /** What is called through slots that the dynamic linker fills, and is no part of the file, by target. */
  readonly slotNames: ReadonlyMap<number, string>;
  nameOfTarget(target: number): string | undefined;
  functionAt(position: number): CodeFunction | undefined;
}

export interface ProgramOptions {
  readonly architecture: Architecture;
  readonly scratch: Scratch;
  /** More function starts than the symbols tell: from unwind tables, or a symbol list of its own. */
  readonly extraFunctions?: readonly CodeFunction[];
}

export function buildProgram(elf: ElfFile, space: CodeSpace, options: ProgramOptions): Program {
  const { architecture, scratch } = options;
  const candidates = collectFunctions(elf, space, options.extraFunctions ?? []);
  const { table, undecoded } = sweepAll(space, candidates, architecture, scratch.table);
  const functions = candidates.map((f) =>
    f.mayBeLabel && isLabel(table, f.start) ? { ...f, isPart: true } : f,
  );
  resolveTargets(elf, space, table, architecture);
  const slots = new LinkageSlots(elf, space, table, architecture);
  const slotNames = bindSlotCalls(space, table, slots);
  const linkageNames = readLinkageNames(elf, space, table, slots);
  const functionStarts = new Set(functions.filter((f) => !f.isPart).map((f) => f.start));
  const isEntryAt = (position: number) => functionStarts.has(position) || linkageNames.has(position);
  bindFarTransfers({ elf, space, table, architecture, slots, isEntry: isEntryAt, names: slotNames });
  const index = new PositionIndex(table, space.bytes.length, scratch);
  const targetIndexes = scratch.int32('target indexes', table.count, -1);
  findTargets(table, index, targetIndexes);
  const isEntry = scratch.uint8('entries', table.count);
  for (const { start, isPart } of functions) {
    const first = isPart ? -1 : index.find(start);
    if (first >= 0) isEntry[first] = 1;
  }
  const program: Program = {
    space,
    table,
    index,
    targetIndexes,
    functions,
    functionStarts,
    isEntry,
    undecoded,
    elf,
    linkageNames,
    slotNames,
    nameOfTarget: (target) =>
      target < -1 && target !== NO_TARGET
        ? (slotNames.get(target) ?? elf.symbols[symbolIndexOfTarget(target)]?.name)
        : (program.linkageNames.get(target) ?? findFunction(functions, target)?.name),
    functionAt: (position) => findFunction(functions, position),
  };
  markThunks(program, architecture);
  return program;
}

function findTargets(table: InstructionTable, index: PositionIndex, result: Int32Array): void {
  const { targets, transfers, transferCount } = table;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    const target = targets[i] as number;
    if (target >= 0) result[i] = index.find(target);
  }
}

/** Whether the instruction before goes on to this position and does something: then this is no entry but a label. */
function isLabel(table: InstructionTable, position: number): boolean {
  const at = lowerBound(table.offsets, table.count, position);
  // The linker names the ends of things too; what lies there is padding.
  if (at < table.count && table.flows[at] === FlowCode.breakpoint) return true;
  const before = at - 1;
  if (before < 0 || (table.offsets[before] as number) + (table.lengths[before] as number) !== position)
    return false;
  const flow = table.flows[before] as number;
  return (flow === FlowCode.next || flow === FlowCode.branch) && !isInert(table, before);
}

function findFunction(functions: readonly CodeFunction[], position: number): CodeFunction | undefined {
  let low = 0;
  let high = functions.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((functions[middle] as CodeFunction).start <= position) low = middle + 1;
    else high = middle;
  }
  const found = functions[low - 1];
  return found !== undefined && position < found.end ? found : undefined;
}

/** `f.cold`, `f.cold.3`: GCC's and LLVM's names of parts that are entered by jumps. */
export const PART_NAME = /\.cold(\.\d+)?$/;

function collectFunctions(elf: ElfFile, space: CodeSpace, extra: readonly CodeFunction[]): CodeFunction[] {
  const found = new Map<
    number,
    { name: string | undefined; end: number; isPart: boolean; rank: number; mayBeLabel: boolean }
  >();
  const symbols = elf.symbols.length > 1 ? elf.symbols : elf.dynamicSymbols;
  for (const symbol of symbols) {
    if (symbol.type !== STT_FUNC) continue;
    const start = space.positionOfSymbol(symbol);
    if (start === undefined) continue;
    const rank = symbol.sizeBytes > 0 ? 2 + symbol.binding : 1;
    const known = found.get(start);
    if (known !== undefined && known.rank >= rank) continue;
    const name = symbol.name;
    found.set(start, {
      name,
      end: start + symbol.sizeBytes,
      isPart: PART_NAME.test(name),
      rank,
      mayBeLabel: false,
    });
  }
  for (const { name, start, end, isPart, mayBeLabel = false } of extra) {
    const known = found.get(start);
    if (known === undefined) found.set(start, { name, end, isPart, rank: 0, mayBeLabel });
    else if (known.end <= start) known.end = end;
  }
  const starts = new Float64Array(found.size);
  let startCount = 0;
  found.forEach((_, start) => {
    starts[startCount++] = start;
  });
  starts.sort();
  const functions: CodeFunction[] = [];
  let region = 0;
  starts.forEach((start, i) => {
    while (region < space.regions.length && start >= (space.regions[region]?.end ?? 0)) region++;
    const each = found.get(start);
    if (each === undefined) return;
    const { name, end, isPart, mayBeLabel } = each;
    const limit = Math.min(starts[i + 1] ?? Number.POSITIVE_INFINITY, space.regions[region]?.end ?? start);
    // A symbol without a size reaches up to the next one.
    functions.push({ name, start, end: end > start ? Math.min(end, limit) : limit, isPart, mayBeLabel });
  });
  return functions.filter((f) => f.end > f.start);
}

function sweepAll(
  space: CodeSpace,
  functions: readonly CodeFunction[],
  architecture: Architecture,
  table: InstructionTable,
) {
  table.clear();
  table.reserve(Math.ceil(space.bytes.length / 4) + 64);
  const undecoded: { start: number; end: number }[] = [];
  let next = 0;
  for (const region of space.regions) {
    let at = region.start;
    while (at < region.end) {
      while (next < functions.length && (functions[next] as CodeFunction).start <= at) next++;
      const boundary = Math.min(functions[next]?.start ?? region.end, region.end);
      const data = architecture.idioms.leadingData(space.bytes, at);
      if (data !== undefined && data.end < boundary) {
        architecture.sweeper.sweep(space.bytes, at, data.start, table);
        markLast(table);
        at = data.end;
      }
      const stopped = architecture.sweeper.sweep(space.bytes, at, boundary, table);
      if (stopped < boundary) {
        undecoded.push({ start: stopped, end: boundary });
        markLast(table);
      }
      at = boundary;
    }
    markLast(table);
  }
  return { table, undecoded };
}

/** What is behind the last instruction is not: whoever goes along the code is to look up there. */
export function markLast({ touches, count, lasts }: InstructionTable): void {
  if (count === 0) return;
  touches[count - 1] = TOUCHES_ALL;
  lasts.push(count - 1);
}

/** Replaces the relative targets of relocated branches by what they name, and translates jumps between sections. */
function resolveTargets(
  elf: ElfFile,
  space: CodeSpace,
  table: InstructionTable,
  architecture: Architecture,
): void {
  if (space.isRelocatable) {
    for (const section of elf.sections) {
      if (section.type !== SHT_RELA) continue;
      const region = space.regionOfSection(section.info);
      if (region !== undefined)
        applyBranchRelocations(elf, section, space, region.start, table, architecture);
    }
    return;
  }
  let region = 0;
  const { offsets, targets, transfers, transferCount } = table;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    const target = targets[i] as number;
    if (target === NO_TARGET) continue;
    while ((offsets[i] as number) >= (space.regions[region]?.end ?? Number.POSITIVE_INFINITY)) region++;
    const home = space.regions[region];
    if (home === undefined || (target >= home.start && target < home.end)) continue;
    targets[i] = space.positionOf(home.address + target - home.start) ?? NO_TARGET;
  }
}

const RELA_BYTES = 24;

function applyBranchRelocations(
  elf: ElfFile,
  section: ElfSection,
  space: CodeSpace,
  regionStart: number,
  table: InstructionTable,
  architecture: Architecture,
): void {
  const words = wordsOf(section.data);
  const count = Math.floor(section.data.length / RELA_BYTES);
  const { offsets, lengths, targets, flows, transfers, transferCount } = table;
  const { symbols } = elf;
  const places = new Int32Array(symbols.length).fill(NO_TARGET);
  let t = 0;
  let i = transferCount > 0 ? (transfers[0] as number) : table.count;
  let last = -1;
  for (let n = 0, word = 0; n < count; n++, word += RELA_BYTES / 4) {
    const offset = regionStart + (words[word] as number);
    // Relocations come in order as a rule; where they don't, the search starts over.
    if (offset < last) {
      t = 0;
      i = transfers[0] as number;
    }
    last = offset;
    while (t < transferCount && (offsets[i] as number) + (lengths[i] as number) <= offset)
      i = transfers[++t] as number;
    if (t >= transferCount) continue;
    if ((offsets[i] as number) > offset) continue;
    const flow = flows[i] as number;
    const type = words[word + 2] as number;
    const bound = architecture.idioms.isSlotRelocation(type) ? directFlowOf(flow) : undefined;
    if (bound === undefined) {
      if (flow !== FlowCode.call && flow !== FlowCode.jump && flow !== FlowCode.branch) continue;
      if (architecture.idioms.relocationKind(type)?.isRelative !== true) continue;
    }
    const symbolIndex = words[word + 3] as number;
    const symbol = symbols[symbolIndex];
    if (symbol === undefined) continue;
    let place = places[symbolIndex] as number;
    if (place === NO_TARGET) {
      place = space.positionOfSymbol(symbol) ?? externalTarget(symbolIndex);
      places[symbolIndex] = place;
    }
    if (bound !== undefined) {
      // The linker makes a slot for the symbol itself: the addend only says where the instruction ends.
      flows[i] = bound;
      targets[i] = place;
      continue;
    }
    // The field's value counts from its own place; the branch from the end of the instruction.
    const toEnd = (offsets[i] as number) + (lengths[i] as number) - offset;
    targets[i] = place >= 0 ? place + (words[word + 4] as number) + toEnd : place;
  }
}

/** 32-bit words of a section: a view where it is aligned, else a copy. */
export function wordsOf(data: Uint8Array): Int32Array {
  const count = data.length >>> 2;
  return data.byteOffset % 4 === 0
    ? new Int32Array(data.buffer, data.byteOffset, count)
    : new Int32Array(data.slice(0, count * 4).buffer);
}

/** Jumps to the kernel's return thunk are returns; jumps and calls to indirect thunks lead wherever a register says. */
function markThunks(program: Program, architecture: Architecture): void {
  const { table, elf, space } = program;
  const kinds = new Map<number, ThunkKind>();
  for (const symbol of elf.symbols) {
    if (symbol.type !== STT_NOTYPE && symbol.type !== STT_FUNC) continue;
    if (symbol.binding === 0) continue;
    const kind = architecture.idioms.thunkKind(symbol.name);
    if (kind !== undefined) kinds.set(space.positionOfSymbol(symbol) ?? externalTarget(symbol.index), kind);
  }
  for (const { name, start } of program.functions) {
    const kind = name === undefined ? undefined : architecture.idioms.thunkKind(name);
    if (kind !== undefined) kinds.set(start, kind);
  }
  if (kinds.size === 0) return;
  replaceThunkFlows(table, kinds);
}

type ThunkKind = 'return' | 'indirect';

function replaceThunkFlows(table: InstructionTable, kinds: ReadonlyMap<number, ThunkKind>): void {
  const areExternal = [...kinds.keys()].every((target) => target < 0);
  const { targets, flows, transfers, transferCount } = table;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    const flow = flows[i] as number;
    if (flow !== FlowCode.jump && flow !== FlowCode.call) continue;
    const target = targets[i] as number;
    if (areExternal && target >= 0) continue;
    const kind = kinds.get(target);
    if (kind === undefined) continue;
    if (flow === FlowCode.call) {
      if (kind === 'indirect') flows[i] = FlowCode.indirectCall;
    } else flows[i] = kind === 'return' ? FlowCode.return : FlowCode.indirectJump;
  }
}
