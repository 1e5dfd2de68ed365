import type { Architecture } from '../arch/architecture.js';
import { ParseError } from '../base/errors.js';
import { LineTable, type SourceLine } from '../dwarf/line-section.js';
import type { ElfFile } from '../elf/elf-file.js';
import type { CodeSpace } from './code-space.js';
import { relocatedSection } from './relocated-section.js';

/**
 * From positions to source lines, by the `.debug_line` of the file or of its separate debug file. Nothing is read before the
 * first question; a table that can't be read answers none.
 */
export class SourceLines {
  readonly #load: () => LineTable | undefined;
  readonly #space: CodeSpace;
  #table: LineTable | undefined;
  #isLoaded = false;

  constructor(
    elf: ElfFile,
    space: CodeSpace,
    architecture: Architecture,
    debugFile: () => ElfFile | undefined = () => undefined,
  ) {
    this.#space = space;
    this.#load = () => {
      if (elf.findSection('.debug_line') !== undefined)
        return readLines(elf, space, architecture, (index) => space.regionOfSection(index)?.start);
      const separate = debugFile();
      if (separate === undefined) return undefined;
      // Stripping renumbers sections: what is left of a module's are paired by name.
      return readLines(separate, space, architecture, (index) => {
        const name = separate.sections[index]?.name;
        return space.regions.find((region) => region.name === name)?.start;
      });
    };
  }

  at(position: number): SourceLine | undefined {
    if (!this.#isLoaded) {
      this.#isLoaded = true;
      try {
        this.#table = this.#load();
      } catch (error) {
        if (!(error instanceof ParseError)) throw error;
      }
    }
    const space = this.#space;
    const found = this.#table?.find(space.isRelocatable ? position : space.addressOf(position));
    return found === undefined || found.line <= 0 ? undefined : found;
  }
}

function readLines(
  elf: ElfFile,
  space: CodeSpace,
  architecture: Architecture,
  startOf: (sectionIndex: number) => number | undefined,
): LineTable | undefined {
  const section = elf.findSection('.debug_line');
  if (section === undefined) return undefined;
  return new LineTable({
    // Offsets of strings are relocated too: by sections that are imagined to lie at 0.
    bytes: space.isRelocatable
      ? relocatedSection(
          elf,
          section,
          architecture,
          0,
          (symbol) => (startOf(symbol.sectionIndex) ?? 0) + symbol.value,
        )
      : section.data,
    lineStrings: elf.findSection('.debug_line_str')?.data,
    strings: elf.findSection('.debug_str')?.data,
    source: elf.source,
  });
}
