import type { Architecture } from '../arch/architecture.js';
import { FlowCode, type InstructionTable, isInert } from '../arch/instruction-table.js';
import { SHN_UNDEF } from '../elf/constants.js';
import type { ElfFile, ElfRelocation, ElfSection } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import { externalTarget } from './external-targets.js';
import { lowerBound } from './position-index.js';

/** Slots that the dynamic linker fills, of which instructions take an address: `jmp *slot(%rip)`, `call *slot(%rip)`. */
export class LinkageSlots {
  readonly #space: CodeSpace;
  readonly #table: InstructionTable;
  readonly #architecture: Architecture;
  readonly #elf: ElfFile;
  readonly #view: DataView;
  #relocations: ReadonlyMap<number, ElfRelocation> | undefined;
  #tables: readonly ElfSection[] | undefined;

  constructor(elf: ElfFile, space: CodeSpace, table: InstructionTable, architecture: Architecture) {
    this.#elf = elf;
    this.#space = space;
    this.#table = table;
    this.#architecture = architecture;
    const { buffer, byteOffset, byteLength } = space.bytes;
    this.#view = new DataView(buffer, byteOffset, byteLength);
  }

  /** The address of what the i-th instruction refers to, relative to itself. */
  addressAt(i: number): number | undefined {
    const at = this.#table.offsets[i] as number;
    const lengthBytes = this.#table.lengths[i] as number;
    const { bytes } = this.#space;
    const field = this.#architecture.decoder.fields(bytes, at, at + lengthBytes)?.ripDisplacementAt;
    if (field === undefined) return undefined;
    return this.#space.addressOf(at) + lengthBytes + this.#view.getInt32(at + field, true);
  }

  /** Where the function lies, or which symbol it is, whose address the dynamic linker puts into a slot of `.got`; names of such symbols go into `names`. */
  targetOf(slot: number, names: Map<number, string>): number | undefined {
    this.#tables ??= this.#elf.sections.filter(({ name }) => name === '.got' || name === '.got.plt');
    const isInTable = this.#tables.some(
      ({ address, sizeBytes }) => slot >= address && slot < address + sizeBytes,
    );
    const relocation = isInTable ? this.relocationAt(slot) : undefined;
    if (relocation === undefined) return undefined;
    const { symbolIndex, addend } = relocation;
    if (symbolIndex === 0) return this.#space.positionOf(addend);
    const symbol = this.#elf.dynamicSymbols[symbolIndex];
    if (symbol?.sectionIndex !== SHN_UNDEF) return symbol && this.#space.positionOfSymbol(symbol);
    const target = externalTarget(this.#elf.symbols.length + symbolIndex);
    names.set(target, symbol.name);
    return target;
  }

  /** What fills the slot at an address. */
  relocationAt(address: number): ElfRelocation | undefined {
    this.#relocations ??= new Map(this.#elf.dynamicRelocations.map((r) => [r.offset, r]));
    return this.#relocations.get(address);
  }
}

/** What `jmp *slot(%rip)` of `.plt`, `.plt.sec` and `.plt.got` leads to, by the dynamic relocation of the slot. */
export function readLinkageNames(
  elf: ElfFile,
  space: CodeSpace,
  table: InstructionTable,
  slots: LinkageSlots,
): ReadonlyMap<number, string> {
  const names = new Map<number, string>();
  const regions = space.regions.filter((r) => r.name.startsWith('.plt'));
  if (regions.length === 0 || space.isRelocatable) return names;
  const { offsets, flows } = table;
  for (const region of regions) {
    for (let i = lowerBound(offsets, table.count, region.start); i < table.count; i++) {
      const at = offsets[i] as number;
      if (at >= region.end) break;
      if (flows[i] !== FlowCode.indirectJump) continue;
      const slot = slots.addressAt(i);
      const symbolIndex = slot === undefined ? undefined : slots.relocationAt(slot)?.symbolIndex;
      const name = symbolIndex === undefined ? undefined : elf.dynamicSymbols[symbolIndex]?.name;
      if (name === undefined || name === '') continue;
      names.set(at, name);
      // With branch tracking, an entry begins one instruction earlier.
      if (i > 0 && isInert(table, i - 1)) names.set(offsets[i - 1] as number, name);
    }
  }
  return names;
}

/**
 * `call *slot(%rip)` (-fno-plt, and Rust) is a call of what the dynamic linker puts into the slot, and `jmp *slot(%rip)` a sibling call. Slots that
 * anything else may write are left alone: they are no part of `.got`. So are the entries of linkage tables, which are called by that name.
 */
export function bindSlotCalls(
  space: CodeSpace,
  table: InstructionTable,
  slots: LinkageSlots,
): Map<number, string> {
  const names = new Map<number, string>();
  if (space.isRelocatable) return names;
  const { flows, targets, transfers, transferCount } = table;
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    const bound = directFlowOf(flows[i] as number);
    if (bound === undefined) continue;
    if (
      bound === FlowCode.jump &&
      space.regionAt(table.offsets[i] as number)?.name.startsWith('.plt') === true
    )
      continue;
    const slot = slots.addressAt(i);
    const target = slot === undefined ? undefined : slots.targetOf(slot, names);
    if (target === undefined) continue;
    flows[i] = bound;
    targets[i] = target;
  }
  return names;
}

/** What an indirect transfer is when it is known where it leads. */
export function directFlowOf(flow: number): number | undefined {
  if (flow === FlowCode.indirectCall) return FlowCode.call;
  return flow === FlowCode.indirectJump ? FlowCode.jump : undefined;
}
