import type { LinkAddress } from '../base/brand.js';
import { ParseError } from '../base/errors.js';
import { ET_REL, PF_X, PT_LOAD, SHF_EXECINSTR, SHT_NOBITS } from '../elf/constants.js';
import type { ElfFile, ElfSymbol } from '../elf/elf-file.js';
import type { Scratch } from './scratch.js';

/** One executable section (or segment, where there are no sections) in a code space. */
export interface CodeRegion {
  readonly name: string;
  /** Positions. */
  readonly start: number;
  readonly end: number;
  /** What the first byte is called in the file: a link address, or 0 in a relocatable object. */
  readonly address: number;
  /** -1 for a segment. */
  readonly sectionIndex: number;
}

/** Between two regions lie bytes that no instruction reaches over. */
const GAP_BYTES = 32;

/**
 * All code of a file in one array, so that everything else works on one number line: positions. In a relocatable object
 * each section starts at address 0; here they lie one behind the other.
 */
export class CodeSpace {
  readonly bytes: Uint8Array;
  readonly regions: readonly CodeRegion[];
  readonly isRelocatable: boolean;
  readonly #bySection = new Map<number, CodeRegion>();

  private constructor(bytes: Uint8Array, regions: readonly CodeRegion[], isRelocatable: boolean) {
    this.bytes = bytes;
    this.regions = regions;
    this.isRelocatable = isRelocatable;
    for (const region of regions) this.#bySection.set(region.sectionIndex, region);
  }

  /** Throws a ParseError when the sections claim more code than the file has bytes. */
  static of(elf: ElfFile, scratch: Scratch): CodeSpace {
    const sections = elf.sections.filter(
      (s) => (s.flags & SHF_EXECINSTR) !== 0 && s.type !== SHT_NOBITS && s.data.length > 0,
    );
    const parts: { name: string; address: number; data: Uint8Array; sectionIndex: number }[] =
      sections.length > 0
        ? sections.map((s) => ({ name: s.name, address: s.address, data: s.data, sectionIndex: s.index }))
        : elf.segments
            .filter((s) => s.type === PT_LOAD && (s.flags & PF_X) !== 0)
            .map((s, i) => ({
              name: `segment ${i}`,
              address: s.address,
              data: elf.bytesAt(s.address, s.fileSizeBytes) ?? new Uint8Array(),
              sectionIndex: -1 - i,
            }));
    const codeBytes = parts.reduce((sum, { data }) => sum + data.length, 0);
    // Sections that share their bytes are damage, and could ask for any amount of memory.
    if (codeBytes > elf.bytes.length) {
      throw new ParseError(elf.source, 0, `${codeBytes} bytes of code in a file of ${elf.bytes.length}`);
    }
    parts.sort((a, b) => a.address - b.address);
    let size = GAP_BYTES;
    for (const part of parts) size += Math.ceil(part.data.length / 16) * 16 + GAP_BYTES;
    const bytes = scratch.uint8('code', size);
    const regions: CodeRegion[] = [];
    let at = GAP_BYTES;
    for (const { name, address, data, sectionIndex } of parts) {
      bytes.set(data, at);
      regions.push({ name, start: at, end: at + data.length, address, sectionIndex });
      at += Math.ceil(data.length / 16) * 16 + GAP_BYTES;
    }
    return new CodeSpace(bytes, regions, elf.type === ET_REL);
  }

  regionOfSection(sectionIndex: number): CodeRegion | undefined {
    return this.#bySection.get(sectionIndex);
  }

  regionAt(position: number): CodeRegion | undefined {
    return this.regions.find((region) => position >= region.start && position < region.end);
  }

  /** The position of a link address; undefined outside of the code. Linked files only. */
  positionOf(address: number): number | undefined {
    for (const region of this.regions) {
      const offset = address - region.address;
      if (offset >= 0 && offset < region.end - region.start) return region.start + offset;
    }
    return undefined;
  }

  /** As {@link positionOf}, with the first address behind a region too: where a range ends. */
  endPositionOf(address: number): number | undefined {
    return this.positionOf(address) ?? this.#afterLast(address - 1);
  }

  #afterLast(address: number): number | undefined {
    const position = this.positionOf(address);
    return position === undefined ? undefined : position + 1;
  }

  /** The position that a symbol names, undefined for one that is not in the code. */
  positionOfSymbol(symbol: ElfSymbol): number | undefined {
    if (!this.isRelocatable) return this.positionOf(symbol.value);
    const region = this.#bySection.get(symbol.sectionIndex);
    if (region === undefined || symbol.value < 0 || symbol.value > region.end - region.start)
      return undefined;
    return region.start + symbol.value;
  }

  /** Where a relocation against a symbol leads; undefined outside of the code, wherever a damaged addend says. */
  positionOfRelocation(symbol: ElfSymbol | undefined, addend: number): number | undefined {
    const start = symbol && this.positionOfSymbol(symbol);
    if (start === undefined) return undefined;
    const position = start + addend;
    return position >= 0 && position <= this.bytes.length ? position : undefined;
  }

  /** The address of a position, as the file counts: within the section in a relocatable object. */
  addressOf(position: number): LinkAddress {
    const region = this.regionAt(position);
    return (region === undefined ? position : region.address + position - region.start) as LinkAddress;
  }
}
