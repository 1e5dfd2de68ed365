import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfRelocation, ElfSection, ElfSymbol } from '../elf/elf-file.js';
import { isInitSection, type ModuleImage } from '../kernel-image/module-image.js';
import type { CodeBlock } from '../patch/displacement.js';
import { relocatedBytes } from './object-model.js';
import type { TargetSymbolDraft } from './target-model.js';

/** Between what other objects define: references may go to places before and behind the symbols that they name. */
const IMPORT_SPACING = 2 ** 16;
const IMPORT_ALIGNMENT = 2 ** 24;
/** All of a module is within reach of 32-bit fields. */
const MAX_BYTES = 2 ** 29;

/**
 * A module's file, linked: as the kernel's loader would lay it out and relocate it, were its text loaded at address 0. So the address
 * of a function is what patches call it by, how far it lies behind the start of the module's text. What it refers to in other
 * objects gets places of its own behind it, known by name.
 */
export class LinkedModule {
  readonly #elf: ElfFile;
  /** By section index. */
  readonly #addresses = new Map<number, number>();
  readonly #bytes: Uint8Array;
  readonly #importsAt: number;

  constructor({ elf, textOffsets }: ModuleImage) {
    this.#elf = elf;
    let end = 0;
    const place = (section: ElfSection, address: number) => {
      this.#addresses.set(section.index, address);
      end = Math.max(end, address + section.sizeBytes);
    };
    for (const [index, offset] of textOffsets) place(elf.sections[index] as ElfSection, offset);
    for (const section of elf.sections) {
      if ((section.flags & c.SHF_ALLOC) === 0 || this.#addresses.has(section.index)) continue;
      const alignment = Math.max(1, section.alignment);
      place(section, Math.ceil(end / alignment) * alignment);
    }
    if (end > MAX_BYTES) throw unusable(elf, 'it is larger than any module');
    this.#importsAt = Math.ceil((end + IMPORT_SPACING) / IMPORT_ALIGNMENT) * IMPORT_ALIGNMENT;
    this.#bytes = new Uint8Array(end);
    for (const [index, address] of this.#addresses) {
      const section = elf.sections[index] as ElfSection;
      if (section.type === c.SHT_NOBITS) continue;
      this.#bytes.set(section.data, address);
      for (const relocation of elf.relocationsFor(section)) this.#relocate(section, address, relocation);
    }
  }

  bytesAt(address: number, sizeBytes: number): Uint8Array | undefined {
    if (address < 0 || address >= this.#bytes.length) return undefined;
    return this.#bytes.subarray(address, address + sizeBytes);
  }

  symbols(): readonly TargetSymbolDraft[] {
    return this.#elf.symbols.flatMap((symbol): readonly TargetSymbolDraft[] => {
      const { name, type, sizeBytes, binding, index, sectionIndex } = symbol;
      const address = this.#addressOf(symbol);
      if (address === undefined || index === 0 || name === '' || name.startsWith('.L')) return [];
      if (type === c.STT_SECTION || type === c.STT_FILE) return [];
      const isImport = sectionIndex === c.SHN_UNDEF;
      const section = this.#elf.sections[sectionIndex];
      const isCode = type === c.STT_FUNC || ((section?.flags ?? 0) & c.SHF_EXECINSTR) !== 0;
      return [
        {
          ...{ name, address, sizeBytes, isImport, fileName: undefined },
          kind: isCode ? 'func' : 'object',
          isLocal: binding === c.STB_LOCAL,
          isInit: !isImport && section !== undefined && isInitSection(section),
        },
      ];
    });
  }

  /** The sections that are loaded, with their addresses. */
  *sections(): Generator<{ readonly section: ElfSection; readonly address: number }> {
    for (const [index, address] of this.#addresses)
      yield { section: this.#elf.sections[index] as ElfSection, address };
  }

  /** All code, init code included. */
  *code(): Generator<CodeBlock> {
    for (const { section, address } of this.sections()) {
      if ((section.flags & c.SHF_EXECINSTR) === 0) continue;
      yield { address, bytes: this.#bytes.subarray(address, address + section.sizeBytes) };
    }
  }

  /** What a relocation refers to, its addend included; undefined for what is not in the module's memory. */
  targetOf({ symbolIndex, addend }: ElfRelocation): number | undefined {
    const symbol = this.#elf.symbols[symbolIndex];
    const address = symbol && this.#addressOf(symbol);
    return address === undefined ? undefined : address + addend;
  }

  /** Undefined for what is not in the module's memory. */
  #addressOf({ index, value, sectionIndex }: ElfSymbol): number | undefined {
    if (sectionIndex === c.SHN_UNDEF) return this.#importsAt + index * IMPORT_SPACING;
    const start = this.#addresses.get(sectionIndex);
    return start === undefined ? undefined : start + value;
  }

  #relocate(section: ElfSection, start: number, { offset, type, symbolIndex, addend }: ElfRelocation): void {
    const size = relocatedBytes(type);
    if (offset < 0 || offset + size > section.sizeBytes)
      throw unusable(this.#elf, `a relocation of ${section.name} lies outside of it`);
    const symbol = this.#elf.symbols[symbolIndex];
    const address = symbol && this.#addressOf(symbol);
    // Absolute symbols, and what is in no loaded section: nothing to be compared.
    if (address === undefined) return;
    const place = start + offset;
    const view = new DataView(this.#bytes.buffer, this.#bytes.byteOffset, this.#bytes.length);
    switch (type) {
      case c.R_X86_64_NONE:
        return;
      case c.R_X86_64_64:
        view.setBigInt64(place, BigInt(address + addend), true);
        return;
      case c.R_X86_64_PC64:
        view.setBigInt64(place, BigInt(address + addend - place), true);
        return;
      case c.R_X86_64_32:
      case c.R_X86_64_32S:
        view.setInt32(place, (address + addend) | 0, true);
        return;
      case c.R_X86_64_PC32:
      case c.R_X86_64_PLT32:
        view.setInt32(place, (address + addend - place) | 0, true);
        return;
      default:
        throw unusable(
          this.#elf,
          `${section.name} has relocations ${c.relocationName(c.EM_X86_64, type)}, which no kernel applies to modules`,
        );
    }
  }
}

function unusable({ source }: ElfFile, problem: string): LivegraftError {
  return new LivegraftError('module-unusable', `${source}: ${problem}`, {
    remedy: 'give the unpacked .ko file that was loaded (from /lib/modules/RELEASE)',
  });
}
