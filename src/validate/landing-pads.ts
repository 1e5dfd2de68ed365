import type { Architecture } from '../arch/architecture.js';
import { FlowCode } from '../arch/instruction-table.js';
import { ParseError } from '../base/errors.js';
import { frameRows } from '../dwarf/frame-program.js';
import { type Fde, FrameSection } from '../dwarf/frame-section.js';
import { type Lsda, parseLsda } from '../dwarf/lsda.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import type { Program } from './program.js';
import { relocatedSection } from './relocated-section.js';

/** Where exceptions that come out of calls are caught, by the index of the call. */
export interface LandingPads {
  /** Index of the instruction at the landing pad. */
  readonly byCall: ReadonlyMap<number, number>;
  /** Calls whose arguments are still on the stack then, with their bytes (`DW_CFA_GNU_args_size`): the unwinder removes them. */
  readonly argumentBytes: ReadonlyMap<number, number>;
  readonly problems: readonly string[];
}

const NONE: LandingPads = { byCall: new Map(), argumentBytes: new Map(), problems: [] };
const SECTION = '.gcc_except_table';

/**
 * Reads the call-site tables that `.eh_frame` names. An exception that leaves a call reaches its landing pad with the callee's
 * frame undone: callee-saved registers as they were at the call, the stack pointer as behind it.
 */
export function readLandingPads(
  elf: ElfFile,
  space: CodeSpace,
  program: Program,
  architecture: Architecture,
): LandingPads {
  const frame = elf.findSection('.eh_frame');
  if (frame === undefined || !elf.sections.some((s) => s.name.startsWith(SECTION))) return NONE;
  const frames = new FrameSection({
    bytes: space.isRelocatable
      ? relocatedSection(elf, frame, architecture, 0, (symbol) => space.positionOfSymbol(symbol))
      : frame.data,
    address: space.isRelocatable ? 0 : frame.address,
    kind: 'eh_frame',
    source: elf.source,
  });
  const locate = space.isRelocatable ? relocatedLocator(elf, frame) : linkedLocator(elf, frames);
  const byCall = new Map<number, number>();
  const argumentBytes = new Map<number, number>();
  const problems: string[] = [];
  try {
    for (const fde of frames.entries()) {
      if (fde.lsdaAt === undefined) continue;
      const start = space.isRelocatable ? fde.start : space.positionOf(fde.start);
      const place = start === undefined || start <= 0 ? undefined : locate(fde);
      if (start === undefined || place === undefined) continue;
      try {
        const lsda = parseLsda(place.section.data, place.section.address, place.offset, elf.source);
        if (!addCalls(lsda, start, space, program, byCall, problems)) continue;
        if (fde.instructions.includes(DW_CFA_GNU_args_size))
          addArguments(fde, start, elf, program, argumentBytes);
      } catch (error) {
        if (!(error instanceof ParseError)) throw error;
        problems.push(error.message);
      }
    }
  } catch (error) {
    // A malformed .eh_frame is a finding of its reader.
    if (!(error instanceof ParseError)) throw error;
  }
  return { byCall, argumentBytes, problems };
}

const DW_CFA_GNU_args_size = 0x2e;

type Locator = (fde: Fde) => { readonly section: ElfSection; readonly offset: number } | undefined;

function linkedLocator(elf: ElfFile, frames: FrameSection): Locator {
  const section = elf.findSection(SECTION);
  return (fde) => {
    const address = frames.lsdaAddress(fde);
    if (section === undefined || address === undefined) return undefined;
    const offset = address - section.address;
    return offset >= 0 && offset < section.data.length ? { section, offset } : undefined;
  };
}

/** In a relocatable object there may be one such section a function: a relocation says which. */
function relocatedLocator(elf: ElfFile, frame: ElfSection): Locator {
  const relocations = new Map(elf.relocationsFor(frame).map((r) => [r.offset, r]));
  return (fde) => {
    const relocation = relocations.get(fde.lsdaAt ?? -1);
    const symbol = relocation && elf.symbols[relocation.symbolIndex];
    const section = symbol && elf.sections[symbol.sectionIndex];
    if (relocation === undefined || section?.name.startsWith(SECTION) !== true) return undefined;
    return { section, offset: (symbol?.value ?? 0) + relocation.addend };
  };
}

/** True when some call has a landing pad. */
function addCalls(
  { callSites, landingPadBase }: Lsda,
  start: number,
  space: CodeSpace,
  program: Program,
  byCall: Map<number, number>,
  problems: string[],
): boolean {
  const { offsets, lengths, flows, count } = program.table;
  const base = landingPadBase === undefined ? start : space.positionOf(landingPadBase);
  let found = false;
  if (base === undefined) return false;
  for (const { start: from, end, landingPad } of callSites) {
    if (landingPad === undefined) continue;
    const pad = program.index.find(base + landingPad);
    if (pad < 0) {
      const name = program.functionAt(start)?.name ?? 'a function';
      problems.push(
        `${SECTION}: calls from ${at(name, from)} on land at ${at(name, landingPad + base - start)}, where no instruction begins`,
      );
      continue;
    }
    for (let i = program.index.rank(start + from); i < count; i++) {
      // The unwinder looks for the byte before the return address.
      const last = (offsets[i] as number) + (lengths[i] as number) - 1;
      if (last >= start + end) break;
      if (flows[i] !== FlowCode.call && flows[i] !== FlowCode.indirectCall) continue;
      byCall.set(i, pad);
      found = true;
    }
  }
  return found;
}

function at(name: string, offset: number): string {
  return `${name}${offset < 0 ? '-' : '+'}0x${Math.abs(offset).toString(16)}`;
}

function addArguments(
  fde: Fde,
  start: number,
  elf: ElfFile,
  program: Program,
  argumentBytes: Map<number, number>,
): void {
  const { offsets, flows, count } = program.table;
  for (const row of frameRows(fde, elf.source)) {
    if (row.argsSizeBytes === 0) continue;
    const end = start + row.end - fde.start;
    for (let i = program.index.rank(start + row.start - fde.start); i < count; i++) {
      if ((offsets[i] as number) >= end) break;
      if (flows[i] === FlowCode.call || flows[i] === FlowCode.indirectCall)
        argumentBytes.set(i, row.argsSizeBytes);
    }
  }
}
