import type { Architecture } from '../arch/architecture.js';
import { FlowCode } from '../arch/instruction-table.js';
import { linkAddress } from '../base/brand.js';
import { SHT_RELA } from '../elf/constants.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import type { LandingPads } from './landing-pads.js';
import { lowerBound } from './position-index.js';
import { type Program, wordsOf } from './program.js';

/** Control can go from one place to another although no instruction says so. */
export interface ExtraFlow {
  /** From before the instruction at a position. */
  readonly edges: readonly { readonly from: number; readonly to: number }[];
  /** Behind the instruction that ends at a position, control goes on elsewhere: where replacement code ends. */
  readonly continuations: ReadonlyMap<number, number>;
  readonly alternatives: readonly Alternative[];
  /**
   * Positions of instructions that control may go on behind, whatever they are: traps that the kernel returns from, as
   * `WARN_ON()` does (`__bug_table`, include/linux/bug.h), jump labels, and a kernel's halts.
   */
  readonly resumed: readonly number[];
  /** Edges that may be none: control goes there only if the claims on both sides agree. */
  readonly possibleEdges?: readonly { readonly from: number; readonly to: number }[];
  readonly landingPads?: LandingPads;
}

/** `sizeBytes` at `original` become the code at `replacement` at boot, so that the rows of the original speak of both. */
export interface Alternative {
  readonly original: number;
  readonly originalBytes: number;
  readonly replacement: number;
  readonly replacementBytes: number;
}

/**
 * Reads what the kernel patches or redirects at run time: `__jump_table` (include/linux/jump_label.h: nops that become
 * jumps), `__ex_table` (asm/extable.h: where a faulting instruction goes on), `.altinstructions` (asm/alternative.h:
 * instructions replaced at boot). Entries count from their own fields. A linked kernel keeps the jump table inside a larger
 * section, where symbols tell its bounds.
 */
export function readKernelFlow(
  elf: ElfFile,
  space: CodeSpace,
  symbolAddress: (name: string) => number | undefined = () => undefined,
  placeOf: (symbol: number) => number | undefined = placesOf(elf, space),
): ExtraFlow {
  const edges: { from: number; to: number }[] = [];
  const continuations = new Map<number, number>();
  const alternatives: Alternative[] = [];
  const findTable = (name: string): Table | undefined => {
    const section = elf.findSection(name);
    if (section !== undefined) return { data: section.data, address: section.address, section };
    const [start, end] = [symbolAddress(`__start_${name}`), symbolAddress(`__stop_${name}`)];
    if (start === undefined || end === undefined || end <= start) return undefined;
    const data = elf.bytesAt(linkAddress(start), end - start);
    return data && { data, address: start, section: undefined };
  };
  const pairs = (name: string, entryBytes: number) => {
    eachPair(elf, space, placeOf, findTable(name), entryBytes, (from, to) => {
      if (from === undefined || to === undefined) return;
      edges.push({ from, to });
      if (name === '__jump_table') resumed.push(from);
    });
  };
  const resumed = readResumedTraps(elf, space, placeOf);
  pairs('__jump_table', 16);
  pairs('__ex_table', 12);

  const section = elf.findSection('.altinstructions');
  if (section !== undefined) {
    const { data } = section;
    const entryBytes = alternativeBytes(data.length, elf);
    eachPair(elf, space, placeOf, findTable('.altinstructions'), entryBytes, (from, to, index) => {
      const at = index * entryBytes;
      // instr_offset, repl_offset, cpuid (16 bits, 32 since 6.3), instrlen, replacementlen
      const lengthsAt = at + entryBytes - 2;
      const instructionBytes = data[lengthsAt] ?? 0;
      const replacementBytes = data[lengthsAt + 1] ?? 0;
      if (from === undefined) return;
      if (replacementBytes === 0 || to === undefined) edges.push({ from, to: from + instructionBytes });
      else {
        edges.push({ from, to });
        alternatives.push({
          original: from,
          originalBytes: instructionBytes,
          replacement: to,
          replacementBytes,
        });
        continuations.set(to + replacementBytes, from + instructionBytes);
      }
    });
  }
  return { edges, continuations, alternatives, resumed };
}

/** Positions where a kernel waits for an interrupt: `hlt` ends a program's function, not a kernel's. */
export function findHalts({ elf, space, table }: Program, { idioms }: Architecture): number[] {
  if (elf.findSection('.modinfo') === undefined && elf.findSection('.orc_unwind') === undefined) return [];
  const halts: number[] = [];
  const flows = table.flows.subarray(0, table.count);
  const next = (from: number) => flows.indexOf(FlowCode.deadEnd, from);
  for (let i = next(0); i >= 0; i = next(i + 1)) {
    const at = table.offsets[i] as number;
    if (idioms.isHalt(space.bytes, at, table.lengths[i] as number)) halts.push(at);
  }
  return halts;
}

/** `struct alt_instr` had 12 bytes (13 before 5.19, with a padlen), and has 14 since its cpuid took 32 bits (5d1dd961e743). */
function alternativeBytes(sizeBytes: number, elf: ElfFile): number {
  const section = elf.findSection('.altinstructions');
  const relocations = section === undefined ? [] : elf.relocationsFor(section);
  const [first, , third] = relocations;
  if (first !== undefined && third !== undefined && third.offset - first.offset >= 12)
    return third.offset - first.offset;
  return sizeBytes % 14 === 0 && sizeBytes % 12 !== 0 ? 14 : 12;
}

/** Whether a position lies in one of some stretches: a search, however many there are. */
export function coverOf(stretches: readonly { readonly start: number; readonly end: number }[]) {
  const starts: number[] = [];
  const ends: number[] = [];
  for (const { start, end } of [...stretches].sort((a, b) => a.start - b.start)) {
    const last = ends.length - 1;
    if (last >= 0 && start <= (ends[last] as number)) ends[last] = Math.max(ends[last] as number, end);
    else {
      starts.push(start);
      ends.push(end);
    }
  }
  const sorted = Int32Array.from(starts);
  return (position: number): boolean => {
    const at = lowerBound(sorted, sorted.length, position + 1) - 1;
    return at >= 0 && position < (ends[at] as number);
  };
}

const BUGFLAG_WARNING = 1;

/** `struct bug_entry`: address, file, line (16 bits), flags (16 bits); file and line only with CONFIG_DEBUG_BUGVERBOSE. */
function readResumedTraps(elf: ElfFile, space: CodeSpace, placeOf: PlaceOf): number[] {
  const section = elf.findSection('__bug_table');
  if (section === undefined) return [];
  const { data } = section;
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const entryBytes = data.length % 12 === 0 ? 12 : 8;
  const resumed: number[] = [];
  const table = { data, address: section.address, section };
  eachPair(elf, space, placeOf, table, entryBytes, (position, _, i) => {
    const flags = view.getUint16(i * entryBytes + (entryBytes === 12 ? 10 : 4), true);
    if (position !== undefined && (flags & BUGFLAG_WARNING) !== 0) resumed.push(position);
  });
  return resumed;
}

interface Table {
  readonly data: Uint8Array;
  readonly address: number;
  /** For its relocations. */
  readonly section: ElfSection | undefined;
}

/** The position that a symbol names, by its index; undefined for one that is not in the code. */
type PlaceOf = (symbol: number) => number | undefined;

function placesOf(elf: ElfFile, space: CodeSpace): PlaceOf {
  return (index) => {
    const symbol = elf.symbols[index];
    return symbol && space.positionOfSymbol(symbol);
  };
}

const RELA_WORDS = 6;

/** Visits each entry with its first two 32-bit fields as positions. */
function eachPair(
  elf: ElfFile,
  space: CodeSpace,
  placeOf: PlaceOf,
  table: Table | undefined,
  entryBytes: number,
  visit: (first: number | undefined, second: number | undefined, index: number) => void,
): void {
  if (table === undefined) return;
  const { data, address, section } = table;
  const count = Math.floor(data.length / entryBytes);
  if (space.isRelocatable) {
    if (section === undefined) return;
    const fields: (number | undefined)[] = new Array(2 * count).fill(undefined);
    for (const relocations of elf.sections) {
      if (relocations.type !== SHT_RELA || relocations.info !== section.index) continue;
      const words = wordsOf(relocations.data);
      for (let word = 0; word + RELA_WORDS <= words.length; word += RELA_WORDS) {
        const offset = words[word] as number;
        const entry = Math.floor(offset / entryBytes);
        const within = offset - entry * entryBytes;
        if (entry < 0 || entry >= count || (within !== 0 && within !== 4)) continue;
        const place = placeOf(words[word + 3] as number);
        const position = (place ?? -1) + (words[word + 4] as number);
        // Wherever a damaged addend says.
        const isInside = place !== undefined && position >= 0 && position <= space.bytes.length;
        fields[2 * entry + within / 4] = isInside ? position : undefined;
      }
    }
    for (let i = 0; i < count; i++) visit(fields[2 * i], fields[2 * i + 1], i);
    return;
  }
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const field = (at: number) => space.positionOf(address + at + view.getInt32(at, true));
  for (let i = 0; i < count; i++) visit(field(i * entryBytes), field(i * entryBytes + 4), i);
}
