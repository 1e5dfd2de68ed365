import type { Architecture, FarTransfer } from '../arch/architecture.js';
import type { InstructionTable } from '../arch/instruction-table.js';
import type { ElfFile, ElfRelocation } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import { externalTarget } from './external-targets.js';
import { directFlowOf, type LinkageSlots } from './linkage-slots.js';

export interface FarTransfersOptions {
  readonly elf: ElfFile;
  readonly space: CodeSpace;
  readonly table: InstructionTable;
  readonly architecture: Architecture;
  readonly slots: LinkageSlots;
  /** Whether a position is the entry of a function, or of a linkage table. */
  readonly isEntry: (position: number) => boolean;
  /** Names of what is no part of the file, by target: see {@link LinkageSlots}. */
  readonly names: Map<number, string>;
}

/**
 * Calls and jumps through a register that holds a constant are calls and jumps of what lies there (-mcmodel=large), where control can't
 * have come from elsewhere since it was loaded.
 */
export function bindFarTransfers(options: FarTransfersOptions): void {
  const { space, table, architecture } = options;
  const { flows, targets, transfers, transferCount } = table;
  const find = options.space.isRelocatable ? relocatedTargets(options) : linkedTargets(options);
  let entered: ReadonlySet<number> | undefined;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    const bound = directFlowOf(flows[i] as number);
    const far = bound === undefined ? undefined : architecture.findFarTransfer(space.bytes, table, i);
    const target = far && find(far);
    if (bound === undefined || far === undefined || target === undefined) continue;
    entered ??= targetsOf(table);
    if (isEnteredBehind(table, entered, far.from, i)) continue;
    flows[i] = bound;
    targets[i] = target;
  }
}

/** Positions that direct jumps, branches and calls lead to. */
function targetsOf({ targets, transfers, transferCount }: InstructionTable): ReadonlySet<number> {
  const found = new Set<number>();
  for (let t = 0; t < transferCount; t++) found.add(targets[transfers[t] as number] as number);
  return found;
}

function isEnteredBehind(
  { offsets }: InstructionTable,
  entered: ReadonlySet<number>,
  from: number,
  to: number,
): boolean {
  for (let i = from + 1; i <= to; i++) if (entered.has(offsets[i] as number)) return true;
  return false;
}

type TargetFinder = (far: FarTransfer) => number | undefined;

function relocatedTargets({ elf, space, architecture }: FarTransfersOptions): TargetFinder {
  const bySection = new Map<number, ReadonlyMap<number, ElfRelocation>>();
  return ({ fieldAt, isSlot }) => {
    const region = space.regionAt(fieldAt);
    const section = region && elf.sections[region.sectionIndex];
    if (region === undefined || section === undefined) return undefined;
    let relocations = bySection.get(section.index);
    if (relocations === undefined) {
      relocations = new Map(elf.relocationsFor(section).map((each) => [each.offset, each]));
      bySection.set(section.index, relocations);
    }
    const relocation = relocations.get(fieldAt - region.start);
    const kind = relocation && architecture.idioms.farReference(relocation.type);
    const symbol = relocation && elf.symbols[relocation.symbolIndex];
    // A variable of this file's own, read at a constant, is no slot.
    if (relocation === undefined || symbol === undefined || kind !== (isSlot ? 'slot' : 'symbol'))
      return undefined;
    const place = space.positionOfSymbol(symbol) ?? externalTarget(symbol.index);
    return place >= 0 && !isSlot ? place + relocation.addend : place;
  };
}

function linkedTargets({ elf, space, slots, isEntry, names }: FarTransfersOptions): TargetFinder {
  let base: number | undefined;
  return ({ value, isRelative, isSlot }) => {
    if (isRelative) base ??= offsetTableOf(elf);
    if (isRelative && base === undefined) return undefined;
    const address = isRelative ? (base as number) + value : value;
    if (isSlot) return slots.targetOf(address, names);
    const target = space.positionOf(address);
    return target !== undefined && isEntry(target) ? target : undefined;
  };
}

/** What `_GLOBAL_OFFSET_TABLE_` is, which stripped files have no symbol for. */
function offsetTableOf(elf: ElfFile): number | undefined {
  return (elf.findSection('.got.plt') ?? elf.findSection('.got'))?.address;
}
