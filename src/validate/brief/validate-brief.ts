import type { Architecture, TableJump } from '../../arch/architecture.js';
import { FlowCode, type InstructionTable, isInert } from '../../arch/instruction-table.js';
import type { SkimTable } from '../../arch/skim-table.js';
import { ParseError } from '../../base/errors.js';
import type { ElfFile } from '../../elf/elf-file.js';
import { orcFormatOf } from '../../orc/format.js';
import { moduleRelease } from '../claim-sources.js';
import type { CodeSpace } from '../code-space.js';
import { INNER_CALL_BYTES } from '../inner-call.js';
import { firstTargets, predecessors } from '../jump-tables.js';
import { readKernelFlow } from '../kernel-sections.js';
import { countBits, lowerBound } from '../position-index.js';
import type { Scratch } from '../scratch.js';
import { BriefNoReturn } from './brief-no-return.js';
import { AWAY, BriefProof, WAY_OUT } from './brief-proof.js';
import type { Leaders } from './leaders.js';
import { BriefFlow, flowOf, lengthOf, skimModule } from './module-code.js';
import { elsewhere, type ModuleFunctions, type ModuleSymbols, readModuleSymbols } from './module-symbols.js';
import { type CodeRange, proveOpenFunctions } from './open-functions.js';
import { type OrcPatterns, type OrcRows, readOrcRows } from './orc-rows.js';
import { placeAlternatives, settleRows } from './row-places.js';

/** What a brief proof shows: every row that control comes to holds. */
export interface BriefResult {
  readonly instructions: number;
  readonly unreached: number;
  /** Stretches `[start, end)` of positions that control does not come to, in order. */
  readonly gaps: readonly number[];
  readonly indirectJumps: number;
}

export interface BriefOptions {
  readonly architecture: Architecture;
  readonly scratch: Scratch;
  readonly kernelRelease?: string | undefined;
}

/** Sections of which a brief proof knows nothing. */
const UNKNOWN_SECTIONS = [
  '.eh_frame',
  '.debug_frame',
  '.discard.unwind_hints',
  '.discard.func_stack_frame_non_standard',
];
/** With more functions than this left open, or this much of the code, all of it is better proven at once. */
const MAX_OPEN = 500;
const MAX_OPEN_SHARE = 0.5;

/**
 * Proves the ORC table of a kernel module by stack pointer and frame pointer alone. Undefined unless everything is as compilers write it and every row
 * that control comes to is proven: then {@link proveFlow} finds the same, in several times as long, and what is otherwise.
 */
export function validateBriefly(
  elf: ElfFile,
  space: CodeSpace,
  options: BriefOptions,
): BriefResult | undefined {
  if (!space.isRelocatable || UNKNOWN_SECTIONS.some((name) => elf.findSection(name) !== undefined))
    return undefined;
  return new BriefValidation(elf, space, options).run();
}

interface DecodedFunction {
  readonly start: number;
  /** Undefined where bytes are no instructions. */
  readonly previous: ((i: number) => number) | undefined;
}

class BriefValidation {
  readonly #elf: ElfFile;
  readonly #space: CodeSpace;
  readonly #architecture: Architecture;
  readonly #options: BriefOptions;
  readonly #skim: SkimTable;
  readonly #leaders: Leaders;
  readonly #few: InstructionTable;
  /** The function that {@link #few} holds while jumps are resolved. */
  #decoded: DecodedFunction | undefined;
  readonly #firstTarget: (jump: TableJump) => number | undefined;

  constructor(elf: ElfFile, space: CodeSpace, options: BriefOptions) {
    this.#elf = elf;
    this.#space = space;
    this.#options = options;
    this.#architecture = options.architecture;
    const { skim, leaders, few } = options.scratch.brief;
    this.#skim = skim;
    this.#leaders = leaders;
    this.#few = few;
    this.#firstTarget = firstTargets(elf, space);
  }

  run(): BriefResult | undefined {
    const elf = this.#elf;
    const space = this.#space;
    const architecture = this.#architecture;
    const skim = this.#skim;
    const leaders = this.#leaders;
    const entries = elf.findSection('.orc_unwind');
    const ips = elf.findSection('.orc_unwind_ip');
    if (entries === undefined || ips === undefined || entries.data.length === 0) return undefined;
    const patterns = this.#patterns();
    if (patterns === undefined) return undefined;
    const symbols = readModuleSymbols(elf, space, architecture.idioms);
    if (symbols === undefined || !skimModule(elf, space, symbols, architecture, skim)) return undefined;
    const kernelFlow = readKernelFlow(elf, space, undefined, (symbol) => {
      const place = symbols.places[symbol];
      return place === undefined || place < 0 ? undefined : place;
    });
    const flow = { ...kernelFlow, resumed: [...kernelFlow.resumed, ...this.#findHalts()] };
    const raw = readOrcRows(elf, entries, ips, symbols.places, space.regions, patterns);
    const placed = raw && placeAlternatives(raw, flow.alternatives, space.regions);
    if (placed === undefined || !settleRows(placed, skim, flow.alternatives)) return undefined;

    if (!this.#areAtInstructions(symbols.functions) || !this.#gatherLeaders(symbols.functions))
      return undefined;
    const edges: number[] = [];
    const addEdge = (from: number, to: number) => {
      if (!this.#isStart(from) || !this.#isStart(to)) return;
      leaders.add(from);
      leaders.add(to);
      edges.push(from, to);
    };
    for (const { from, to } of flow.edges) addEdge(from, to);
    for (const position of flow.resumed)
      if (this.#isStart(position)) addEdge(position, this.#after(position));
    const ends = new Set(space.regions.map(({ end }) => end));
    for (const [end, to] of flow.continuations) {
      if (!this.#isStart(to)) continue;
      leaders.add(to);
      if (this.#isStart(end)) leaders.add(end);
      else if (!ends.has(end)) return undefined;
    }
    if (!leaders.areInstructions(skim)) return undefined;
    leaders.finish(skim);
    const links = this.#link();
    const areEntries = new Uint8Array(leaders.count);
    const { functions } = symbols;
    for (let f = 0; f < functions.count; f++)
      if (functions.areParts[f] === 0) areEntries[leaders.find(functions.starts[f] as number)] = 1;
    const resumed = new Set<number>();
    for (const position of flow.resumed) {
      const leader = leaders.find(position);
      if (leader < 0) continue;
      const entry = leaders.entries[leader] as number;
      if (skim.positions[entry] === position) resumed.add(entry);
    }
    const noReturn = new BriefNoReturn({
      skim,
      leaders,
      symbols,
      links,
      areEntries,
      resumed,
      isPadding: (from, to) => this.#isPadding(from, to),
    });
    // What control does not come back from is told call by call there, and function by function here.
    if (noReturn.hasLastCall) return undefined;
    const indirectJumps = this.#resolve(links, areEntries, noReturn, symbols);
    if (indirectJumps < 0) return undefined;
    const special = new Uint8Array(leaders.count);
    const edgesOf = new Map<number, number[]>();
    for (let at = 0; at < edges.length; at += 2) {
      const [from, to] = [leaders.find(edges[at] as number), leaders.find(edges[at + 1] as number)];
      special[from] = 1;
      const known = edgesOf.get(from);
      if (known === undefined) edgesOf.set(from, [to]);
      else known.push(to);
    }
    const continuations = new Map<number, number>();
    for (const [end, to] of flow.continuations) {
      if (!this.#isStart(to)) continue;
      continuations.set(end, leaders.find(to));
      if (this.#isStart(end)) special[leaders.find(end)] = 1;
    }
    const proof = new BriefProof({
      skim,
      leaders,
      rows: placed,
      patterns,
      stackPointer: architecture.stackPointer,
      framePointer: architecture.framePointer,
      links,
      edges: edgesOf,
      continuations,
      special,
    });
    const open: number[] = [];
    let openBytes = 0;
    for (let f = 0; f < functions.count; f++) {
      if (functions.areParts[f] === 1) continue;
      if (proof.proveFrom(leaders.find(functions.starts[f] as number))) continue;
      open.push(f);
      openBytes += (functions.ends[f] as number) - (functions.starts[f] as number);
      if (open.length > MAX_OPEN || openBytes > space.bytes.length * MAX_OPEN_SHARE) return undefined;
    }
    if (open.length === 0) return this.#sum(proof, placed, indirectJumps, [], []);
    const { scratch } = this.#options;
    const done = proveOpenFunctions(open, {
      ...{
        elf,
        space,
        architecture,
        scratch,
        skim,
        leaders,
        links,
        functions,
        extraFlow: flow,
        noReturn,
        patterns,
      },
      rows: raw as OrcRows,
    });
    return done && this.#sum(proof, placed, indirectJumps, done.ranges, done.gaps);
  }

  /** As {@link findHalts} does. */
  #findHalts(): number[] {
    const { positions, flows, transfers, transferCount } = this.#skim;
    const halts: number[] = [];
    for (let t = 0; t < transferCount; t++) {
      const entry = transfers[t] as number;
      if (flowOf(flows, entry) !== FlowCode.deadEnd) continue;
      const position = positions[entry] as number;
      if (this.#architecture.idioms.isHalt(this.#space.bytes, position, lengthOf(flows, entry)))
        halts.push(position);
    }
    return halts;
  }

  #patterns(): OrcPatterns | undefined {
    const elf = this.#elf;
    const { kernelRelease, scratch } = this.#options;
    try {
      const format = orcFormatOf(
        { header: elf.findSection('.orc_header')?.data, kernelRelease: kernelRelease ?? moduleRelease(elf) },
        elf.source,
      );
      return scratch.brief.patterns(this.#architecture, format);
    } catch (error) {
      if (error instanceof ParseError) return undefined;
      throw error;
    }
  }

  #isStart(position: number): boolean {
    return (
      position >= 0 &&
      position < this.#space.bytes.length &&
      (((this.#skim.starts[position >>> 5] as number) >>> (position & 31)) & 1) === 1
    );
  }

  /** Whether all functions and parts of them begin where instructions do. From another place on, the code would be another one. */
  #areAtInstructions({ starts, count }: ModuleFunctions): boolean {
    for (let f = 0; f < count; f++) if (!this.#isStart(starts[f] as number)) return false;
    return true;
  }

  /** Where the next instruction starts. */
  #after(position: number): number {
    let next = position + 1;
    while (next < this.#space.bytes.length && !this.#isStart(next)) next++;
    return next;
  }

  /** Entries of functions, and what jumps and calls lead to. False where that is no place in the code. */
  #gatherLeaders({ starts, areParts, count }: ModuleFunctions): boolean {
    const { values, flows, transfers, transferCount } = this.#skim;
    const leaders = this.#leaders;
    const size = this.#space.bytes.length;
    leaders.clear(size);
    for (let f = 0; f < count; f++) if (areParts[f] === 0) leaders.add(starts[f] as number);
    for (let t = 0; t < transferCount; t++) {
      const entry = transfers[t] as number;
      const flow = flowOf(flows, entry);
      if (flow !== FlowCode.jump && flow !== FlowCode.branch && flow !== FlowCode.call) continue;
      const target = values[entry] as number;
      if (target >= size || target === -1) return false;
      if (target >= 0) leaders.add(target);
    }
    return true;
  }

  /** By entry, the leader that it leads to. */
  #link(): Int32Array {
    const { values, flows, count, transfers, transferCount } = this.#skim;
    const leaders = this.#leaders;
    const links = this.#options.scratch.rawInt32('brief links', count);
    for (let t = 0; t < transferCount; t++) {
      const entry = transfers[t] as number;
      const flow = flowOf(flows, entry);
      if (flow !== FlowCode.jump && flow !== FlowCode.branch && flow !== FlowCode.call) continue;
      const target = values[entry] as number;
      links[entry] = target >= 0 ? leaders.find(target) : target;
    }
    return links;
  }

  /**
   * Tells calls that never return, jumps within a function and jumps out of it apart. Returns how many indirect jumps there are; -1 for what
   * a brief proof does not follow: tables of jumps, and calls that only push an address.
   */
  #resolve(
    links: Int32Array,
    areEntries: Uint8Array,
    noReturn: BriefNoReturn,
    symbols: ModuleSymbols,
  ): number {
    const { positions, flows, transfers, transferCount } = this.#skim;
    const { starts, ends, count: functionCount } = symbols.functions;
    const leaders = this.#leaders;
    let indirectJumps = 0;
    let f = 0;
    for (let t = 0; t < transferCount; t++) {
      const entry = transfers[t] as number;
      const flow = flowOf(flows, entry);
      const position = positions[entry] as number;
      while (f < functionCount && (ends[f] as number) <= position) f++;
      const own = f < functionCount && (starts[f] as number) <= position ? (starts[f] as number) : -1;
      if (flow === FlowCode.call) {
        const link = links[entry] as number;
        if (noReturn.has(link)) flows[entry] = BriefFlow.noReturnCall | ((flows[entry] as number) & 0xf0);
        if (link < 0 || areEntries[link] === 1) continue;
        const target = leaders.positions[link] as number;
        const isOwn = own >= 0 && target >= own && target < (ends[f] as number);
        if (isOwn && target > position && target - position <= INNER_CALL_BYTES) return -1;
      } else if (flow === FlowCode.jump || flow === FlowCode.branch) {
        const link = links[entry] as number;
        if (link < 0) links[entry] = noReturn.has(link) ? AWAY : WAY_OUT;
        else if (areEntries[link] === 1 && leaders.positions[link] !== own)
          links[entry] = own < 0 || noReturn.has(link) ? AWAY : WAY_OUT;
      } else if (flow === FlowCode.indirectJump) {
        indirectJumps++;
        if (own < 0 || this.#hasTable(entry, own, ends[f] as number, symbols)) return -1;
      }
    }
    return indirectJumps;
  }

  /** Whether an indirect jump in the function `[start, end)` reads where in the function it leads from a table. */
  #hasTable(jump: number, start: number, end: number, symbols: ModuleSymbols): boolean {
    const { findTableJump, idioms } = this.#architecture;
    const skim = this.#skim;
    if (this.#decoded?.start !== start) this.#decoded = this.#decode(start, end);
    const { previous } = this.#decoded;
    if (previous === undefined) return true;
    const table = this.#few;
    const found = table.findAt(skim.positions[jump] as number);
    const target = skim.values[jump] as number;
    const thunk = target < -1 && lengthOf(skim.flows, jump) >= 5 ? symbols.nameOf(elsewhere(target)) : '';
    const read = findTableJump(this.#space.bytes, table, found, previous, idioms.thunkRegister(thunk));
    const first = read && this.#firstTarget(read);
    if (first === undefined) return false;
    const { functions } = symbols;
    const home = lowerBound(functions.starts, functions.count, first + 1) - 1;
    return (first >= start && first < end) || (home >= 0 && functions.areParts[home] === 1);
  }

  /** All instructions of a function, with the flows that the skim has, and from where control comes to each. */
  #decode(start: number, end: number): DecodedFunction {
    const skim = this.#skim;
    const table = this.#few;
    table.clear();
    if (this.#architecture.sweeper.sweep(this.#space.bytes, start, end, table) !== end)
      return { start, previous: undefined };
    const targetIndexes = new Int32Array(table.count).fill(-1);
    let entry = lowerBound(skim.positions, skim.count, start);
    for (let i = 0; i < table.count; i++) {
      const position = table.offsets[i] as number;
      while ((skim.positions[entry] as number) < position) entry++;
      if (skim.positions[entry] !== position) continue;
      table.flows[i] = flowOf(skim.flows, entry);
      const target = skim.values[entry] as number;
      if (table.flows[i] === FlowCode.jump || table.flows[i] === FlowCode.branch)
        targetIndexes[i] = target >= start && target < end ? table.findAt(target) : -1;
    }
    const previous = predecessors({
      table,
      targetIndexes,
      functionStarts: { has: (position) => position === start },
      functionAt: () => ({ name: undefined, start, end, isPart: false }),
    });
    return { start, previous };
  }

  #isPadding(from: number, to: number): boolean {
    const table = this.#few;
    table.clear();
    if (this.#architecture.sweeper.sweep(this.#space.bytes, from, to, table) !== to) return false;
    for (let i = 0; i < table.count; i++) if (!isInert(table, i)) return false;
    return true;
  }

  /** What control does not come to is padding, or nothing is claimed there; else undefined. `ranges` were proven apart, but for `open`. */
  #sum(
    proof: BriefProof,
    rows: OrcRows,
    indirectJumps: number,
    ranges: readonly CodeRange[],
    open: readonly number[],
  ): BriefResult | undefined {
    const leaders = this.#leaders;
    const gaps: number[] = [];
    let unreached = 0;
    const addGap = (from: number, to: number) => {
      if (gaps.length > 0 && gaps[gaps.length - 1] === from) gaps[gaps.length - 1] = to;
      else gaps.push(from, to);
      unreached += this.#countStarts(from, to);
    };
    let leader = 0;
    let row = 0;
    let range = 0;
    let gap = 0;
    for (const { start, end } of this.#space.regions) {
      let at = start;
      while (at < end) {
        while (range < ranges.length && (ranges[range] as CodeRange).end <= at) range++;
        const apart = range < ranges.length ? (ranges[range] as CodeRange) : { start: end, end };
        if (at >= apart.start) {
          for (; gap < open.length && (open[gap] as number) < apart.end; gap += 2)
            addGap(open[gap] as number, open[gap + 1] as number);
          at = apart.end;
          while (leader < leaders.count && (leaders.positions[leader] as number) < at) leader++;
          continue;
        }
        const next = leader < leaders.count ? (leaders.positions[leader] as number) : end;
        const position = Math.min(next, end, apart.start);
        if (position > at) {
          while (row + 1 < rows.count && (rows.positions[row + 1] as number) <= at) row++;
          if (!this.#isUnclaimed(rows, row, position) && !this.#isPadding(at, position)) return undefined;
          addGap(at, position);
        }
        at = position;
        if (position < next || position >= end) continue;
        const last = proof.ends[leader] as number;
        if (last !== 0) at = Math.min(last, apart.start);
        leader++;
      }
    }
    const instructions = this.#countStarts(0, this.#space.bytes.length);
    return { instructions, unreached, gaps, indirectJumps };
  }

  #isUnclaimed({ positions, patterns, count }: OrcRows, first: number, end: number): boolean {
    for (let row = first; row < count && (row === first || (positions[row] as number) < end); row++)
      if (patterns[row] !== 0) return false;
    return true;
  }

  #countStarts(from: number, to: number): number {
    const { starts } = this.#skim;
    const [first, last] = [from >>> 5, to >>> 5];
    let count = 0;
    for (let word = first; word <= last; word++) {
      let bits = starts[word] as number;
      if (word === first) bits &= -1 << (from & 31);
      if (word === last) bits &= (1 << (to & 31)) - 1;
      count += countBits(bits);
    }
    return count;
  }
}
