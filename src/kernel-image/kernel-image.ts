import { linkAddress } from '../base/brand.js';
import { decodeText } from '../base/byte-reader.js';
import { LivegraftError, ParseError } from '../base/errors.js';
import type { BtfFile } from '../btf/btf.js';
import { parseBtf } from '../btf/parse-btf.js';
import type { ElfFile } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';
import { type Kallsyms, type KallsymsLayout, parseKallsyms } from './kallsyms.js';
import { KernelSymbolTable } from './symbol-table.js';
import { type ExceptionTable, type ExportedSymbol, parseExceptionTable, parseExports } from './tables.js';

/** All that a vmlinux says about its kernel. Addresses are link addresses: what KASLR adds is not in them. */
export interface KernelImage {
  readonly source: string;
  readonly elf: ElfFile;
  /** `linux_banner` without its line end: `Linux version 6.1.0-50-cloud-amd64 (…) …`. */
  readonly banner: string;
  /** `6.1.0-50-cloud-amd64` */
  readonly release: string;
  readonly buildId: string | undefined;
  readonly symbols: KernelSymbolTable;
  /** Where the symbols come from. */
  readonly symbolSource:
    | { readonly kind: 'symtab' }
    | { readonly kind: 'kallsyms'; readonly layout: KallsymsLayout };
  readonly btf: BtfFile;
  readonly exports: ReadonlyMap<string, ExportedSymbol>;
  readonly exceptions: ExceptionTable;
  readonly text: { readonly address: number; readonly bytes: Uint8Array };
}

/**
 * Reads a vmlinux, stripped (as in a vmlinuz) or with symbols. Throws a ParseError when it is damaged, and a
 * LivegraftError (`kernel-image-incomplete`) when something that livegraft needs is not in it.
 */
export function parseKernelImage(bytes: Uint8Array, source: string): KernelImage {
  const elf = parseElf(bytes, source);
  const textSection = elf.findSection('.text');
  const btfSection = elf.findSection('.BTF');
  if (textSection === undefined) throw incomplete(source, '.text', 'give a vmlinux or vmlinuz');
  if (btfSection === undefined && !holdsBanner(elf)) {
    throw new LivegraftError('kernel-image-incomplete', `${source} is no Linux kernel`, {
      remedy: 'give the vmlinuz or vmlinux of the running kernel',
    });
  }
  if (btfSection === undefined)
    throw incomplete(source, '.BTF', 'give a kernel built with CONFIG_DEBUG_INFO_BTF');
  const { symbols, symbolSource } = readSymbols(elf);
  const banner = readBanner(elf, symbols);
  return {
    source,
    elf,
    banner,
    release: /^Linux version (\S+)/.exec(banner)?.[1] ?? '',
    buildId: elf.buildId,
    symbols,
    symbolSource,
    btf: parseBtf(btfSection.data, `${source}(.BTF)`),
    exports: parseExports(elf),
    exceptions: parseExceptionTable(elf),
    text: { address: textSection.address, bytes: textSection.data },
  };
}

function incomplete(source: string, what: string, remedy: string): LivegraftError {
  return new LivegraftError('kernel-image-incomplete', `${source} has no ${what}`, { remedy });
}

/** The kernel's own table, whose order `sympos` counts in; `.symtab` where a kernel has none. */
function readSymbols(elf: ElfFile): Pick<KernelImage, 'symbols' | 'symbolSource'> {
  const section = elf.findSection('.rodata');
  let kallsyms: Kallsyms | undefined;
  try {
    kallsyms = section && parseKallsyms(section.data, section.address, elf.source);
  } catch (error) {
    if (!(error instanceof ParseError) || elf.symbols.length === 0) throw error;
  }
  if (kallsyms !== undefined) {
    return {
      symbols: new KernelSymbolTable(kallsyms.names, kallsyms.types, kallsyms.addresses),
      symbolSource: { kind: 'kallsyms', layout: kallsyms.layout },
    };
  }
  const sorted = elf.symbols
    .filter((symbol) => symbol.name !== '' && symbol.sectionIndex > 0 && symbol.type <= STT_FUNC)
    .sort((a, b) => unsignedOrder(a.value, b.value) || a.index - b.index);
  if (sorted.length === 0) throw incomplete(elf.source, 'kallsyms tables and no .symtab', 'give a vmlinux');
  return {
    symbols: new KernelSymbolTable(
      sorted.map((symbol) => symbol.name),
      sorted.map((symbol) => letterOf(elf, symbol)).join(''),
      Float64Array.from(sorted, (symbol) => symbol.value),
    ),
    symbolSource: { kind: 'symtab' },
  };
}

const STT_FUNC = 2;

function unsignedOrder(a: number, b: number): number {
  return a < 0 === b < 0 ? a - b : a < 0 ? 1 : -1;
}

/** As `nm` says it, as far as livegraft asks: text, or not. */
function letterOf(elf: ElfFile, symbol: { readonly sectionIndex: number; readonly binding: number }): string {
  const isText = ((elf.sections[symbol.sectionIndex]?.flags ?? 0) & SHF_EXECINSTR) !== 0;
  const letter = isText ? 't' : 'd';
  return symbol.binding === 0 ? letter : letter.toUpperCase();
}

const SHF_EXECINSTR = 4;

/** What every kernel says of itself (init/version.c), wherever its symbols may be. */
function holdsBanner(elf: ElfFile): boolean {
  const rodata = elf.findSection('.rodata')?.data;
  return rodata !== undefined && decodeText(rodata).includes('Linux version ');
}

function readBanner(elf: ElfFile, symbols: KernelSymbolTable): string {
  const symbol = symbols.findUnique('linux_banner');
  const bytes = symbol && elf.bytesAt(linkAddress(symbol.address), 1024);
  const end = bytes?.indexOf(0) ?? -1;
  const text = bytes && end > 0 ? decodeText(bytes.subarray(0, end)).trimEnd() : '';
  if (!text.startsWith('Linux version ')) throw incomplete(elf.source, 'linux_banner', 'give a Linux kernel');
  return text;
}
