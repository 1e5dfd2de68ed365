import type { Architecture, TableJump } from '../arch/architecture.js';
import { FlowCode, isInert } from '../arch/instruction-table.js';
import { linkAddress } from '../base/brand.js';
import type { ElfFile, ElfRelocation, ElfSymbol } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import { lowerBound } from './position-index.js';
import type { Program } from './program.js';

/** Where the indirect jumps of a program lead, as far as their tables tell. */
export interface JumpTables {
  /** By tables whose end is known: control can go there. */
  readonly edges: readonly Edge[];
  /** By tables that were read up to the first entry that is no place in the function: control may be able to. */
  readonly possibleEdges: readonly Edge[];
  readonly followed: number;
  readonly notFollowed: number;
  /** Why the jumps that are not followed are not, by the index of the jump. */
  readonly unfollowed: ReadonlyMap<number, string>;
  /** What is not proven of a table that is followed, by the index of the jump. */
  readonly unbounded: ReadonlyMap<number, string>;
}

interface Edge {
  readonly from: number;
  readonly to: number;
}

const MAX_ENTRIES = 1 << 16;
/** More instructions of padding than any alignment takes. */
const MAX_PADDING = 16;

/**
 * Finds the tables of `switch` and computed `goto` behind indirect jumps, and reads them: through the relocations of a
 * relocatable object, else from the loaded bytes and dynamic relocations. Only entries that lead to an instruction of the same
 * function, or of a part split off one, count.
 */
export function findJumpTables(
  elf: ElfFile,
  space: CodeSpace,
  program: Program,
  architecture: Architecture,
): JumpTables {
  const { table } = program;
  const reader = space.isRelocatable ? new RelocatedTables(elf, space) : new LinkedTables(elf, space);
  const previous = predecessors(program);
  const found: { i: number; jump: TableJump; place: TablePlace }[] = [];
  const unfollowed = new Map<number, string>();
  const unbounded = new Map<number, string>();
  const { flows, transfers, transferCount } = table;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    if (flows[i] !== FlowCode.indirectJump) continue;
    const at = table.offsets[i] as number;
    const thunk = program.nameOfTarget(table.targets[i] as number);
    const register = thunk === undefined ? undefined : architecture.idioms.thunkRegister(thunk);
    const jump = architecture.findTableJump(space.bytes, table, i, previous, register);
    const place = jump && reader.locate(jump, at);
    if (jump === undefined)
      unfollowed.set(i, 'where this jump leads is computed, and no table of targets was found');
    else if (place === undefined) unfollowed.set(i, 'the table of this jump is no part of the file');
    else found.push({ i, jump, place });
  }
  const begins = new Map<number, Set<number>>();
  for (const { place } of found) {
    const inSection = begins.get(place.section);
    if (inSection === undefined) begins.set(place.section, new Set([place.at]));
    else inSection.add(place.at);
  }
  const edges: Edge[] = [];
  const possibleEdges: Edge[] = [];
  for (const { i, jump, place } of found) {
    const from = table.offsets[i] as number;
    const own = program.functionAt(from);
    const targets = new Set<number>();
    const count = jump.count ?? MAX_ENTRIES;
    let read = 0;
    for (; read < Math.min(count, MAX_ENTRIES); read++) {
      const at = place.at + read * jump.entrySizeBytes;
      if (jump.count === undefined && read > 0 && begins.get(place.section)?.has(at) === true) break;
      const target = reader.entry(place, read, jump);
      if (target === undefined || program.index.find(target) < 0) break;
      const home = program.functionAt(target);
      // A slot that is not bound yet leads to the code that binds it.
      const isBinding = jump.count === 1 && space.regionAt(target)?.name.startsWith('.plt') === true;
      if (home !== own && home?.isPart !== true && !isBinding) break;
      targets.add(target);
    }
    if (targets.size === 0) {
      unfollowed.set(i, 'the first entry of the table of this jump is no place in the function');
      continue;
    }
    const isWhole = jump.count === read;
    if (!isWhole) {
      unbounded.set(
        i,
        jump.count === undefined
          ? `nothing in the code bounds the index: ${read} entries were read, up to the first that leads elsewhere`
          : `of ${jump.count} entries, the one behind the first ${read} leads elsewhere`,
      );
    }
    for (const to of targets) (isWhole ? edges : possibleEdges).push({ from, to });
  }
  const notFollowed = unfollowed.size;
  const followed = found.filter(({ i }) => !unfollowed.has(i)).length;
  return { edges, possibleEdges, followed, notFollowed, unfollowed, unbounded };
}

/** Where the first entries of jumps' tables lead, in a relocatable object; undefined for no place in the code. */
export function firstTargets(elf: ElfFile, space: CodeSpace): (jump: TableJump) => number | undefined {
  const reader = new RelocatedTables(elf, space);
  return (jump) => {
    const place = reader.locate(jump);
    return place && reader.entry(place, 0, jump);
  };
}

/** What of a program tells where control comes from. */
export type Predecessors = Pick<Program, 'table' | 'targetIndexes' | 'functionAt' | 'functionStarts'>;

/** The instruction before, where control runs on from it; else one that jumps here. */
export function predecessors(program: Predecessors): (i: number) => number {
  const { table, targetIndexes } = program;
  const { offsets, flows, count } = table;
  const sourcesOf = new Map<number, Map<number, number>>();
  /** Direct jumps inside one function, by their targets. */
  const sourcesIn = (start: number, end: number): Map<number, number> => {
    let sources = sourcesOf.get(start);
    if (sources === undefined) {
      sources = new Map();
      for (let i = lowerBound(offsets, count, start); i < count && (offsets[i] as number) < end; i++) {
        const flow = flows[i];
        const target = targetIndexes[i] as number;
        if (target >= 0 && (flow === FlowCode.jump || flow === FlowCode.branch) && !sources.has(target))
          sources.set(target, i);
      }
      sourcesOf.set(start, sources);
    }
    return sources;
  };
  return (i) => {
    const at = offsets[i] as number;
    if (program.functionStarts.has(at)) return -1;
    if (runsOnFromBefore(program, i)) return i - 1;
    const f = program.functionAt(at);
    return f === undefined ? -1 : (sourcesIn(f.start, f.end).get(i) ?? -1);
  };
}

function runsOnFromBefore({ table }: Predecessors, i: number): boolean {
  const { offsets, lengths, flows } = table;
  let before = i - 1;
  // Padding behind a jump runs on into nothing.
  while (before > 0 && before > i - MAX_PADDING && isInert(table, before)) before--;
  for (let at = before; at < i; at++)
    if (at < 0 || (offsets[at] as number) + (lengths[at] as number) !== offsets[at + 1]) return false;
  const flow = flows[before] as number;
  return !(
    flow === FlowCode.jump ||
    flow === FlowCode.indirectJump ||
    flow === FlowCode.breakpoint ||
    flow >= FlowCode.return
  );
}

/** `at`: a link address, or an offset in the section of a relocatable object. */
interface TablePlace {
  readonly section: number;
  readonly at: number;
}

interface TableReader {
  locate(jump: TableJump, position: number): TablePlace | undefined;
  /** The position that an entry leads to. */
  entry(place: TablePlace, index: number, jump: TableJump): number | undefined;
}

class LinkedTables implements TableReader {
  readonly #elf: ElfFile;
  readonly #space: CodeSpace;
  #relocated: Map<number, number> | undefined;

  constructor(elf: ElfFile, space: CodeSpace) {
    this.#elf = elf;
    this.#space = space;
  }

  locate(jump: TableJump, position: number): TablePlace | undefined {
    const region = this.#space.regionAt(position);
    if (region === undefined) return undefined;
    const at = jump.isPcRelative ? jump.value - region.start + region.address : jump.value;
    return { section: 0, at };
  }

  entry({ at }: TablePlace, index: number, jump: TableJump): number | undefined {
    const address = at + index * jump.entrySizeBytes;
    const bytes = this.#elf.bytesAt(linkAddress(address), jump.entrySizeBytes);
    if (bytes?.length !== jump.entrySizeBytes) return undefined;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (jump.isRelative) return this.#space.positionOf(at + view.getInt32(0, true));
    this.#relocated ??= new Map(
      this.#elf.dynamicRelocations.filter((r) => r.symbolIndex === 0).map((r) => [r.offset, r.addend]),
    );
    const value = this.#relocated.get(address);
    return this.#space.positionOf(value ?? Number(view.getBigInt64(0, true)));
  }
}

class RelocatedTables implements TableReader {
  readonly #elf: ElfFile;
  readonly #space: CodeSpace;
  readonly #bySection = new Map<number, ReadonlyMap<number, ElfRelocation>>();

  constructor(elf: ElfFile, space: CodeSpace) {
    this.#elf = elf;
    this.#space = space;
  }

  #relocationAt(
    section: number,
    offset: number,
  ): { relocation: ElfRelocation; symbol: ElfSymbol } | undefined {
    let relocations = this.#bySection.get(section);
    if (relocations === undefined) {
      const home = this.#elf.sections[section];
      relocations = new Map(
        home === undefined ? [] : this.#elf.relocationsFor(home).map((r) => [r.offset, r]),
      );
      this.#bySection.set(section, relocations);
    }
    const relocation = relocations.get(offset);
    const symbol = relocation && this.#elf.symbols[relocation.symbolIndex];
    return relocation && symbol && { relocation, symbol };
  }

  locate(jump: TableJump): TablePlace | undefined {
    const region = this.#space.regionAt(jump.fieldAt);
    if (region === undefined) return undefined;
    const found = this.#relocationAt(region.sectionIndex, jump.fieldAt - region.start);
    if (found === undefined || found.symbol.sectionIndex === 0) return undefined;
    // A relative field counts from its own end, which is the end of the instruction that loads an address.
    const at = found.symbol.value + found.relocation.addend + (jump.isPcRelative ? 4 : 0);
    return { section: found.symbol.sectionIndex, at };
  }

  entry({ section, at }: TablePlace, index: number, jump: TableJump): number | undefined {
    const found = this.#relocationAt(section, at + index * jump.entrySizeBytes);
    const start = found && this.#space.positionOfSymbol(found.symbol);
    if (found === undefined || start === undefined) return undefined;
    return start + found.relocation.addend - (jump.isRelative ? index * jump.entrySizeBytes : 0);
  }
}
