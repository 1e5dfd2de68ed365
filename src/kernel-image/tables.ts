import { ByteReader } from '../base/byte-reader.js';
import { ParseError } from '../base/errors.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';

export interface ExportedSymbol {
  readonly name: string;
  /** Of a per-CPU variable: its offset in the per-CPU area. */
  readonly address: number;
  readonly isGplOnly: boolean;
  /** Empty for the default namespace. */
  readonly namespace: string;
}

/** `struct kernel_symbol` with place-relative words (include/linux/export.h, CONFIG_HAVE_ARCH_PREL32_RELOCATIONS). */
const EXPORT_BYTES = 12;

/** `KSYM_FLAG_GPL_ONLY`, in the byte that `__kflagstab` has for each symbol. (Seen in Debian's 7.2, which has one `__ksymtab`.) */
const FLAG_GPL_ONLY = 1;

/**
 * The symbols that modules may use: `__ksymtab` and `__ksymtab_gpl` of a vmlinux, or the first of them with flags beside it.
 * Throws a ParseError when damaged.
 */
export function parseExports(elf: ElfFile): ReadonlyMap<string, ExportedSymbol> {
  const strings = elf.findSection('__ksymtab_strings');
  const flags = elf.findSection('__kflagstab')?.data;
  const exports = new Map<string, ExportedSymbol>();
  for (const sectionName of ['__ksymtab', '__ksymtab_gpl']) {
    const section = elf.findSection(sectionName);
    if (section === undefined) continue;
    if (strings === undefined)
      throw new ParseError(elf.source, 0, `${sectionName} without __ksymtab_strings`);
    const reader = new ByteReader(section.data, `${elf.source}(${sectionName})`, section.offset);
    for (let index = 0; reader.remaining >= EXPORT_BYTES; index++) {
      const address = relativeAddress(reader, section);
      const name = stringAt(elf, strings, relativeAddress(reader, section));
      const namespaceAt = reader.readI32();
      const namespace =
        namespaceAt === 0 ? '' : stringAt(elf, strings, section.address + reader.offset - 4 + namespaceAt);
      const isGplOnly = sectionName.endsWith('_gpl') || ((flags?.[index] ?? 0) & FLAG_GPL_ONLY) !== 0;
      exports.set(name, { name, address, isGplOnly, namespace });
    }
  }
  return exports;
}

export interface ExceptionTable {
  readonly size: number;
  /** Where the kernel goes on when the instruction at `address` faults; undefined when it may not. */
  findFixup(address: number): number | undefined;
}

/** `struct exception_table_entry` of x86: two place-relative words, and a handler or its type. */
const EXCEPTION_BYTES = 12;

/** `__ex_table` of a vmlinux: the instructions that may fault. */
export function parseExceptionTable(elf: ElfFile): ExceptionTable {
  const section = elf.findSection('__ex_table');
  const fixups = new Map<number, number>();
  if (section !== undefined) {
    const reader = new ByteReader(section.data, `${elf.source}(__ex_table)`, section.offset);
    if (section.data.length % EXCEPTION_BYTES !== 0) reader.fail(`no multiple of ${EXCEPTION_BYTES} bytes`);
    while (!reader.atEnd) {
      const instruction = relativeAddress(reader, section);
      fixups.set(instruction, relativeAddress(reader, section));
      reader.skip(4);
    }
  }
  return { size: fixups.size, findFixup: (address) => fixups.get(address) };
}

function relativeAddress(reader: ByteReader, section: ElfSection): number {
  const place = section.address + reader.offset;
  // Sums of 32-bit words wrap in 64 bits: a per-CPU symbol is reached from the top of the address space.
  const value = place + reader.readI32();
  return value;
}

function stringAt(elf: ElfFile, strings: ElfSection, address: number): string {
  const offset = address - strings.address;
  if (offset < 0 || offset >= strings.data.length)
    throw new ParseError(elf.source, strings.offset, `a name at ${offset} is outside of ${strings.name}`);
  return new ByteReader(strings.data, `${elf.source}(${strings.name})`, strings.offset)
    .seek(offset)
    .readCString();
}
