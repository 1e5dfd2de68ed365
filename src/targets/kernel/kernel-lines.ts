import { ParseError } from '../../base/errors.js';
import { LineTable, type SourceLine } from '../../dwarf/line-section.js';
import type { ElfFile } from '../../elf/elf-file.js';

/** Source lines of a kernel by link address, where its vmlinux is one for debuggers. Read when first asked for. */
export class KernelLines {
  readonly #elf: ElfFile;
  #table: LineTable | undefined;
  #isRead = false;

  constructor(elf: ElfFile) {
    this.#elf = elf;
  }

  /** Undefined where the file has no line table, or that says nothing of the address. */
  at(address: number): SourceLine | undefined {
    if (!this.#isRead) {
      this.#isRead = true;
      this.#table = readTable(this.#elf);
    }
    const found = this.#table?.find(address);
    return found === undefined || found.line <= 0 ? undefined : found;
  }
}

/** A table that is damaged answers nothing: lines are for people, and decide nothing. */
function readTable(elf: ElfFile): LineTable | undefined {
  try {
    const bytes = elf.findSection('.debug_line')?.data;
    if (bytes === undefined) return undefined;
    return new LineTable({
      bytes,
      lineStrings: elf.findSection('.debug_line_str')?.data,
      strings: elf.findSection('.debug_str')?.data,
      source: elf.source,
    });
  } catch (error) {
    if (error instanceof ParseError) return undefined;
    throw error;
  }
}
