import type { Architecture } from '../../arch/architecture.js';
import { FlowCode } from '../../arch/instruction-table.js';
import type { SkimTable } from '../../arch/skim-table.js';
import { SHT_RELA } from '../../elf/constants.js';
import type { ElfFile, ElfSection } from '../../elf/elf-file.js';
import type { CodeSpace } from '../code-space.js';
import { wordsOf } from '../program.js';
import { type ModuleSymbols, Thunk } from './module-symbols.js';

/** What the flow of an entry of a skim may be besides {@link FlowCode}. */
export const BriefFlow = {
  ...FlowCode,
  /** A call that never returns. */
  noReturnCall: 11,
  /** Behind the last instruction of a region. */
  end: 15,
} as const;

export function flowOf(flows: Uint8Array, entry: number): number {
  return (flows[entry] as number) & 15;
}

export function lengthOf(flows: Uint8Array, entry: number): number {
  return (flows[entry] as number) >> 4;
}

/**
 * Skims a module's code, and makes targets of relocated jumps and calls what their symbols say: a position, or {@link elsewhere}. False where
 * bytes are no instructions.
 */
export function skimModule(
  elf: ElfFile,
  space: CodeSpace,
  symbols: ModuleSymbols,
  architecture: Architecture,
  skim: SkimTable,
): boolean {
  skim.clear(space.bytes.length);
  for (const { start, end } of space.regions) {
    if (architecture.skimmer.skim(space.bytes, start, end, skim) !== end) return false;
    skim.reserve(skim.count + 1);
    skim.transfers[skim.transferCount++] = skim.count;
    skim.positions[skim.count] = end;
    skim.flows[skim.count] = BriefFlow.end;
    skim.effects[skim.count] = 0;
    skim.values[skim.count++] = 0;
  }
  for (const section of elf.sections) {
    const region = section.type === SHT_RELA ? space.regionOfSection(section.info) : undefined;
    if (region !== undefined) relocate(section, region.start, symbols, architecture, skim);
  }
  return true;
}

const RELA_WORDS = 6;

function relocate(
  section: ElfSection,
  regionStart: number,
  { places, thunks }: ModuleSymbols,
  { idioms }: Architecture,
  skim: SkimTable,
): void {
  const { transferCount, transfers, positions, flows, values } = skim;
  const words = wordsOf(section.data);
  const end = words.length - RELA_WORDS + 1;
  let transfer = 0;
  let last = -1;
  let entry = transfers[0] as number;
  let position = positions[entry] as number;
  let entryEnd = position + lengthOf(flows, entry);
  for (let word = 0; word < end; word += RELA_WORDS) {
    const offset = regionStart + (words[word] as number);
    // They come in order as a rule; where they don't, the search starts over.
    if (offset < last) transfer = -1;
    last = offset;
    while ((entryEnd <= offset || transfer < 0) && transfer + 1 < transferCount) {
      entry = transfers[++transfer] as number;
      position = positions[entry] as number;
      entryEnd = position + lengthOf(flows, entry);
    }
    if (position > offset || entryEnd <= offset) continue;
    const flow = flowOf(flows, entry);
    if (flow !== FlowCode.call && flow !== FlowCode.jump && flow !== FlowCode.branch) continue;
    if (idioms.relocationKind(words[word + 2] as number)?.isRelative !== true) continue;
    const symbol = words[word + 3] as number;
    const place = places[symbol];
    if (place === undefined) continue;
    const length = lengthOf(flows, entry);
    // The field's value counts from its own place; the branch from the end of the instruction.
    values[entry] = place >= 0 ? place + (words[word + 4] as number) + position + length - offset : place;
    const thunk = thunks[symbol] as number;
    if (thunk === Thunk.none || flow === FlowCode.branch) continue;
    if (flow === FlowCode.jump)
      flows[entry] = (thunk === Thunk.return ? FlowCode.return : FlowCode.indirectJump) | (length << 4);
    else if (thunk === Thunk.indirect) flows[entry] = FlowCode.indirectCall | (length << 4);
  }
}
