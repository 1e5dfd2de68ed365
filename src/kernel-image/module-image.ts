import { decodeText } from '../base/byte-reader.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfSection } from '../elf/elf-file.js';

/** A function or variable of a module's file. */
export interface ModuleSymbol {
  readonly name: string;
  readonly kind: 'func' | 'object';
  /** For one in text that stays: how far behind the start of the loaded module's text it comes to lie. */
  readonly textOffset: number | undefined;
  readonly sizeBytes: number;
  /** The section that it lies in, and where. */
  readonly section: ElfSection;
  readonly value: number;
}

/** What a module's file (`.ko`) says of the module. */
export interface ModuleImage {
  readonly source: string;
  readonly elf: ElfFile;
  /** As the kernel calls it, with underscores. */
  readonly name: string;
  readonly buildId: string;
  /** The kernel release that it was built for. */
  readonly release: string;
  /** The names of what other modules may use of it (EXPORT_SYMBOL). */
  readonly exports: ReadonlySet<string>;
  /** Of the sections whose code stays: how far behind the start of the loaded module's text they come to lie, by index. */
  readonly textOffsets: ReadonlyMap<number, number>;
  findAll(name: string): readonly ModuleSymbol[];
}

/** Where init code goes, which is freed once the module has started (`module_init_section`, kernel/module/main.c). */
const INIT = /^\.init/;

/** Whether a section's memory is freed once the module has started. */
export function isInitSection({ name }: Pick<ElfSection, 'name'>): boolean {
  return INIT.test(name);
}

/**
 * Reads a module's file. Throws a LivegraftError `module-unusable` for what is no module, is packed, or has no build-id, by which
 * a loaded one is recognised.
 */
export function readModuleImage(elf: ElfFile): ModuleImage {
  const information = new Map(
    decodeText(elf.findSection('.modinfo')?.data ?? new Uint8Array())
      .split('\0')
      .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)] as const),
  );
  const name = information.get('name');
  const release = information.get('vermagic')?.split(' ')[0];
  if (name === undefined || release === undefined || elf.type !== c.ET_REL)
    throw unusable(elf.source, 'it is no kernel module');
  const { buildId } = elf;
  if (buildId === undefined) throw unusable(elf.source, 'it has no build-id');
  const offsets = textOffsets(elf);
  const symbols = readSymbols(elf, offsets);
  const exported = decodeText(elf.findSection('__ksymtab_strings')?.data ?? new Uint8Array());
  return {
    ...{ source: elf.source, elf, name, release, buildId, textOffsets: offsets },
    exports: new Set(exported.split('\0').filter((each) => each !== '')),
    findAll: (symbol) => symbols.get(symbol) ?? [],
  };
}

function unusable(source: string, problem: string): LivegraftError {
  return new LivegraftError('module-unusable', `${source}: ${problem}`, {
    remedy:
      'give the unpacked .ko file that was loaded (from /lib/modules/RELEASE), not stripped of its notes',
  });
}

/** The text of a loaded module begins with these sections, one behind the other (`layout_sections`, kernel/module/main.c), in the
 * order of the file. */
function textOffsets(elf: ElfFile): ReadonlyMap<number, number> {
  const offsets = new Map<number, number>();
  const mask = c.SHF_ALLOC | c.SHF_EXECINSTR;
  let end = 0;
  for (const section of elf.sections) {
    if ((section.flags & mask) !== mask || isInitSection(section)) continue;
    const alignment = Math.max(1, section.alignment);
    const start = Math.ceil(end / alignment) * alignment;
    offsets.set(section.index, start);
    end = start + section.sizeBytes;
  }
  return offsets;
}

function readSymbols(
  elf: ElfFile,
  offsets: ReadonlyMap<number, number>,
): ReadonlyMap<string, readonly ModuleSymbol[]> {
  const found = new Map<string, ModuleSymbol[]>();
  for (const { name, type, value, sizeBytes, sectionIndex } of elf.symbols) {
    const section = elf.sections[sectionIndex];
    const kind = type === c.STT_FUNC ? 'func' : type === c.STT_OBJECT ? 'object' : undefined;
    if (section === undefined || kind === undefined || name === '') continue;
    const start = offsets.get(sectionIndex);
    const symbol = {
      name,
      kind,
      sizeBytes,
      section,
      value,
      textOffset: start === undefined ? undefined : start + value,
    } as const;
    const known = found.get(name);
    if (known === undefined) found.set(name, [symbol]);
    else known.push(symbol);
  }
  return found;
}
