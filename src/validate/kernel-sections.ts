import { linkAddress } from '../base/brand.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import type { LandingPads } from './landing-pads.js';

/** Control can go from one place to another although no instruction says so. */
export interface ExtraFlow {
  /** From before the instruction at a position. */
  readonly edges: readonly { readonly from: number; readonly to: number }[];
  /** Behind the instruction that ends at a position, control goes on elsewhere: where replacement code ends. */
  readonly continuations: ReadonlyMap<number, number>;
  readonly alternatives: readonly Alternative[];
  /**
   * Positions of instructions that control may go on behind, whatever they are: traps that the kernel returns from, as
   * `WARN_ON()` does (`__bug_table`, include/linux/bug.h), and jump labels.
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
    for (const [from, to] of readPairs(elf, space, findTable(name), entryBytes)) {
      if (from === undefined || to === undefined) continue;
      edges.push({ from, to });
      if (name === '__jump_table') resumed.push(from);
    }
  };
  const resumed = readResumedTraps(elf, space);
  pairs('__jump_table', 16);
  pairs('__ex_table', 12);

  const section = elf.findSection('.altinstructions');
  if (section !== undefined) {
    const { data } = section;
    const entryBytes = alternativeBytes(data.length, elf);
    let index = 0;
    for (const [from, to] of readPairs(elf, space, findTable('.altinstructions'), entryBytes)) {
      const at = index++ * entryBytes;
      // instr_offset, repl_offset, cpuid (16 bits, 32 since 6.3), instrlen, replacementlen
      const lengthsAt = at + entryBytes - 2;
      const instructionBytes = data[lengthsAt] ?? 0;
      const replacementBytes = data[lengthsAt + 1] ?? 0;
      if (from === undefined) continue;
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
    }
  }
  return { edges, continuations, alternatives, resumed };
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

const BUGFLAG_WARNING = 1;

/** `struct bug_entry`: address, file, line (16 bits), flags (16 bits); file and line only with CONFIG_DEBUG_BUGVERBOSE. */
function readResumedTraps(elf: ElfFile, space: CodeSpace): number[] {
  const section = elf.findSection('__bug_table');
  if (section === undefined) return [];
  const { data } = section;
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const entryBytes = data.length % 12 === 0 ? 12 : 8;
  const resumed: number[] = [];
  readPairs(elf, space, { data, address: section.address, section }, entryBytes).forEach(([position], i) => {
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

/** The first two 32-bit fields of each entry as positions. */
function readPairs(
  elf: ElfFile,
  space: CodeSpace,
  table: Table | undefined,
  entryBytes: number,
): (readonly [number | undefined, number | undefined])[] {
  if (table === undefined) return [];
  const { data, address, section } = table;
  const count = Math.floor(data.length / entryBytes);
  if (space.isRelocatable) {
    if (section === undefined) return [];
    const fields = new Map<number, number | undefined>();
    for (const { offset, symbolIndex, addend } of elf.relocationsFor(section)) {
      const symbol = elf.symbols[symbolIndex];
      const place = symbol && space.positionOfSymbol(symbol);
      fields.set(offset, place === undefined ? undefined : place + addend);
    }
    return Array.from({ length: count }, (_, i) => [
      fields.get(i * entryBytes),
      fields.get(i * entryBytes + 4),
    ]);
  }
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const field = (at: number) => space.positionOf(address + at + view.getInt32(at, true));
  return Array.from({ length: count }, (_, i) => [field(i * entryBytes), field(i * entryBytes + 4)]);
}
