import type { InstructionDecoder } from '../arch/architecture.js';
import { LivegraftError, ParseError } from '../base/errors.js';
import { parseTypeLayouts } from '../dwarf/type-layouts.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfRelocation, ElfSection, ElfSymbol } from '../elf/elf-file.js';
import { readSpecialEntries, type SpecialEntry } from './special-sections.js';

/** A huge page: nothing that compilers make asks for more, and a file is filled up to it. */
const MAX_ALIGNMENT = 2 ** 21;

/** A relocatable object seen as functions and data, each in a section of its own. */
export class ObjectModel {
  readonly elf: ElfFile;
  readonly source: string;
  /** Named functions and variables, by name; names of static ones may carry a number (`x.1234`). */
  readonly definitions: ReadonlyMap<string, Definition>;
  /** The source file's name as the compiler recorded it. */
  readonly fileName: string | undefined;
  readonly #bySection: ReadonlyMap<number, readonly Definition[]>;
  readonly #decoder: InstructionDecoder;
  readonly #instructionEnds = new Map<number, Map<number, number>>();
  readonly #relocations = new Map<number, readonly ElfRelocation[]>();
  #special: readonly SpecialEntry[] | undefined;
  #users: Map<Definition, Set<string>> | undefined;
  #typeLayouts: { readonly value: ReadonlyMap<string, string> | undefined } | undefined;
  #anonymous: Map<number, number[]> | undefined;

  constructor(elf: ElfFile, decoder: InstructionDecoder) {
    this.elf = elf;
    this.source = elf.source;
    this.#decoder = decoder;
    if (elf.sections.some((s) => s.name.startsWith('.gnu.lto_'))) {
      throw new LivegraftError(
        'lto-object',
        `${elf.source} holds link-time-optimisation data instead of final code`,
        {
          remedy: 'build without -flto',
          details: { object: elf.source },
        },
      );
    }
    for (const { name, alignment } of elf.sections) {
      if (alignment <= MAX_ALIGNMENT) continue;
      throw new LivegraftError(
        'object-malformed',
        `${elf.source}: ${name} is to be aligned to ${alignment} bytes`,
        {
          remedy: 'compile it again',
        },
      );
    }
    const definitions = new Map<string, Definition>();
    const bySection = new Map<number, Definition[]>();
    let fileName: string | undefined;
    for (const symbol of elf.symbols) {
      if (symbol.type === c.STT_FILE) fileName ??= symbol.name;
      const section = elf.sections[symbol.sectionIndex];
      if (section === undefined || symbol.sectionIndex === 0 || symbol.sectionIndex >= c.SHN_LORESERVE)
        continue;
      const kind = kindOf(symbol, section);
      if (kind === undefined) continue;
      const definition: Definition = { name: symbol.name, kind, symbol, section };
      definitions.set(symbol.name, definition);
      const list = bySection.get(section.index);
      if (list === undefined) bySection.set(section.index, [definition]);
      else list.push(definition);
    }
    this.definitions = definitions;
    this.fileName = fileName;
    this.#bySection = bySection;
  }

  definitionsIn(section: ElfSection): readonly Definition[] {
    return this.#bySection.get(section.index) ?? [];
  }

  relocationsOf(section: ElfSection): readonly ElfRelocation[] {
    let relocations = this.#relocations.get(section.index);
    if (relocations === undefined) {
      relocations = [...this.elf.relocationsFor(section)].sort((a, b) => a.offset - b.offset);
      this.#relocations.set(section.index, relocations);
    }
    return relocations;
  }

  /** How the structures that the file knows are laid out, by name; undefined without debug information that can be read. */
  get typeLayouts(): ReadonlyMap<string, string> | undefined {
    this.#typeLayouts ??= { value: this.#readTypeLayouts() };
    return this.#typeLayouts.value;
  }

  #readTypeLayouts(): ReadonlyMap<string, string> | undefined {
    const info = this.elf.findSection('.debug_info');
    if (info === undefined) return undefined;
    const values = new Map(
      this.relocationsOf(info).map((r) => [
        r.offset,
        (this.elf.symbols[r.symbolIndex]?.value ?? 0) + r.addend,
      ]),
    );
    const data = (name: string) => this.elf.findSection(name)?.data ?? new Uint8Array();
    try {
      return parseTypeLayouts({
        info: info.data,
        abbrev: data('.debug_abbrev'),
        str: data('.debug_str'),
        lineStr: data('.debug_line_str'),
        relocated: (offset) => values.get(offset),
        source: this.source,
      });
    } catch (error) {
      if (error instanceof ParseError) return undefined;
      throw error;
    }
  }

  /** Names of the functions and variables that refer to a definition. */
  usersOf(definition: Definition): ReadonlySet<string> {
    if (this.#users === undefined) {
      this.#users = new Map();
      for (const user of this.definitions.values()) {
        const { value, sizeBytes } = user.symbol;
        for (const relocation of this.relocationsOf(user.section)) {
          if (relocation.offset < value || relocation.offset >= value + sizeBytes) continue;
          const reference = this.referenceOf(user.section, relocation);
          if (reference.kind !== 'definition') continue;
          const users = this.#users.get(reference.definition) ?? new Set();
          this.#users.set(reference.definition, users.add(user.name));
        }
      }
    }
    return this.#users.get(definition) ?? new Set();
  }

  /** Where code refers to data without a name in a section, in ascending order: each begins a constant or a table. */
  anonymousPositions(section: ElfSection): readonly number[] {
    if (this.#anonymous === undefined) {
      this.#anonymous = new Map();
      for (const code of this.elf.sections) {
        if ((code.flags & c.SHF_EXECINSTR) === 0) continue;
        for (const relocation of this.relocationsOf(code)) {
          const reference = this.referenceOf(code, relocation);
          if (reference.kind !== 'anonymous') continue;
          const known = this.#anonymous.get(reference.section.index) ?? [];
          known.push(reference.position);
          this.#anonymous.set(reference.section.index, known);
        }
      }
      for (const positions of this.#anonymous.values()) positions.sort((a, b) => a - b);
    }
    return this.#anonymous.get(section.index) ?? [];
  }

  /** What a relocation means, whatever symbol the assembler chose to express it. */
  referenceOf(section: ElfSection, relocation: ElfRelocation): Reference {
    const symbol = this.elf.symbols[relocation.symbolIndex];
    if (symbol === undefined) throw this.#bad(`relocation names symbol ${relocation.symbolIndex}`);
    // A pc-relative field counts from the end of its instruction, the addend from its own place.
    const bias = isPcRelative(relocation.type) ? this.#fieldBias(section, relocation.offset) : 0;
    const offset = relocation.addend + bias;
    if (symbol.sectionIndex === c.SHN_UNDEF || symbol.sectionIndex >= c.SHN_LORESERVE) {
      return { kind: 'undefined', name: symbol.name, offset, isWeak: symbol.binding === c.STB_WEAK, symbol };
    }
    const home = this.elf.sections[symbol.sectionIndex];
    if (home === undefined) throw this.#bad(`symbol ${symbol.name} lies in section ${symbol.sectionIndex}`);
    const position = symbol.value + offset;
    const named =
      symbol.type === c.STT_SECTION ? this.#covering(home, position) : this.definitions.get(symbol.name);
    if (named !== undefined) {
      return { kind: 'definition', definition: named, offset: position - named.symbol.value };
    }
    if ((home.flags & c.SHF_STRINGS) !== 0)
      return { kind: 'string', bytes: stringAt(home, position), section: home, position };
    return { kind: 'anonymous', section: home, position };
  }

  /** What a kernel's tables say of the code in a section. */
  specialEntriesOf(section: ElfSection): readonly SpecialEntry[] {
    this.#special ??= readSpecialEntries(this.elf);
    return this.#special.filter((entry) => entry.code.index === section.index);
  }

  /** The functions that lie in sections of one kind with this one, in the order in which they were compiled. */
  functionsInOrder(definition: Definition): readonly Definition[] {
    const base = ({ section, name }: Definition) =>
      section.name.endsWith(`.${name}`) ? section.name.slice(0, -name.length) : `${section.name}.`;
    return [...this.definitions.values()]
      .filter((d) => d.kind === 'function' && d.symbol.sizeBytes > 0 && base(d) === base(definition))
      .sort((a, b) => a.section.index - b.section.index || a.symbol.value - b.symbol.value);
  }

  /** The function or variable at a place of a section, and how far into it that is. */
  definitionAt(
    section: ElfSection,
    position: number,
  ): { readonly definition: Definition; readonly offset: number } | undefined {
    const definition = this.#covering(section, position);
    return definition && { definition, offset: position - definition.symbol.value };
  }

  #covering(section: ElfSection, position: number): Definition | undefined {
    let best: Definition | undefined;
    for (const definition of this.definitionsIn(section)) {
      const { value, sizeBytes } = definition.symbol;
      const isInside = position >= value && position < value + Math.max(1, sizeBytes);
      // One past the end is a legal address of an array.
      if (isInside || (best === undefined && position === value + sizeBytes)) best = definition;
      if (isInside) break;
    }
    return best;
  }

  #fieldBias(section: ElfSection, offset: number): number {
    if ((section.flags & c.SHF_EXECINSTR) === 0) return 0;
    let ends = this.#instructionEnds.get(section.index);
    if (ends === undefined) {
      ends = new Map();
      const bytes = section.data;
      for (let at = 0; at < bytes.length; ) {
        const length = this.#decoder.length(bytes, at);
        if (length === 0) {
          at++;
          continue;
        }
        for (let i = at; i < at + length; i++) ends.set(i, at + length);
        at += length;
      }
      this.#instructionEnds.set(section.index, ends);
    }
    return (ends.get(offset) ?? offset + 4) - offset;
  }

  #bad(problem: string): LivegraftError {
    return new LivegraftError('object-malformed', `${this.source}: ${problem}`, {
      remedy: 'compile the file again',
    });
  }
}

export interface Definition {
  readonly name: string;
  readonly kind: 'function' | 'data' | 'tls';
  readonly symbol: ElfSymbol;
  readonly section: ElfSection;
}

export type Reference =
  | { readonly kind: 'definition'; readonly definition: Definition; readonly offset: number }
  | {
      readonly kind: 'undefined';
      readonly name: string;
      readonly offset: number;
      readonly isWeak: boolean;
      readonly symbol: ElfSymbol;
    }
  | {
      readonly kind: 'string';
      readonly bytes: Uint8Array;
      readonly section: ElfSection;
      readonly position: number;
    }
  | { readonly kind: 'anonymous'; readonly section: ElfSection; readonly position: number };

function isPcRelative(type: number): boolean {
  return (
    type === c.R_X86_64_PC32 ||
    type === c.R_X86_64_PLT32 ||
    type === c.R_X86_64_GOTPCREL ||
    type === c.R_X86_64_GOTPCRELX ||
    type === c.R_X86_64_REX_GOTPCRELX ||
    type === c.R_X86_64_GOTTPOFF ||
    type === c.R_X86_64_TLSGD ||
    type === c.R_X86_64_TLSLD
  );
}

/** Bytes that a relocation of this type overwrites. */
export function relocatedBytes(type: number): number {
  switch (type) {
    case c.R_X86_64_NONE:
    case c.R_X86_64_TLSDESC_CALL: // marks a call
      return 0;
    case c.R_X86_64_8:
    case c.R_X86_64_PC8:
      return 1;
    case c.R_X86_64_16:
    case c.R_X86_64_PC16:
      return 2;
    case c.R_X86_64_64:
    case c.R_X86_64_PC64:
    case c.R_X86_64_TPOFF64:
    case c.R_X86_64_DTPOFF64:
      return 8;
    default:
      return 4;
  }
}

/**
 * The name that stays the same between two compilations: static variables and clones carry numbers that shift when
 * something is added before them, and so do the names that the kernel's macros make (`__UNIQUE_ID`).
 */
export function stableName(name: string): string {
  return name.replace(/^(__UNIQUE_ID_\D+)\d+/, '$1#').replace(/\.(\d+)(?=\.|$)/g, '.#');
}

/**
 * `f` of `f.cold`, `f.cold.1`: what only `f` jumps to. The other split-off parts (part, constprop, isra) are called, by
 * whoever `f` was inlined into as well, and count as functions of their own.
 */
export function parentOfPart(name: string): string | undefined {
  return /^(.+?)\.cold(\.\d+)*$/.exec(name)?.[1];
}

function kindOf(symbol: ElfSymbol, section: ElfSection): Definition['kind'] | undefined {
  switch (symbol.type) {
    case c.STT_FUNC:
    case c.STT_GNU_IFUNC:
      return 'function';
    case c.STT_OBJECT:
    case c.STT_COMMON:
      return 'data';
    case c.STT_TLS:
      return 'tls';
    case c.STT_NOTYPE:
      // Cold parts of some compilers have no type; labels in assembly neither.
      if (symbol.name === '' || symbol.name.startsWith('.L')) return undefined;
      return (section.flags & c.SHF_EXECINSTR) !== 0 ? 'function' : 'data';
    default:
      return undefined;
  }
}

function stringAt(section: ElfSection, position: number): Uint8Array {
  const width = Math.max(1, section.entrySizeBytes);
  const { data } = section;
  let end = position;
  while (end < data.length && !data.subarray(end, end + width).every((b) => b === 0)) end += width;
  return data.subarray(position, Math.min(data.length, end + width));
}
