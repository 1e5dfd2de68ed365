import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfSymbol } from '../elf/elf-file.js';
import { stableName } from './object-model.js';

/** A function or variable of the target file. */
export interface TargetSymbol {
  readonly name: string;
  /** 0 when the name is unique among symbols of its kind, else its place by address, from 1. */
  readonly sympos: number;
  readonly address: number;
  readonly sizeBytes: number;
  readonly kind: 'func' | 'object' | 'tls';
  readonly isLocal: boolean;
  /** The source file that a local symbol belongs to, as the linker recorded it. */
  readonly fileName: string | undefined;
}

export type TargetSymbolDraft = Omit<TargetSymbol, 'sympos'>;

/** The executable, library or kernel that is to be patched, by symbol. */
export class TargetModel {
  readonly elf: ElfFile;
  /** Last component of its path, or its SONAME; `vmlinux` for a kernel. */
  readonly objectName: string;
  /** A kernel: nothing but its own symbols can be referred to, and its boot code is gone. */
  readonly isKernel: boolean;
  readonly #byName = new Map<string, TargetSymbol[]>();
  readonly #byStableName = new Map<string, TargetSymbol[]>();
  readonly #byAddress = new Map<number, TargetSymbol[]>();
  #order: Float64Array | undefined;
  readonly #files: ReadonlySet<string>;

  /**
   * `files` are the names of the source files as far as the linker recorded them. A kernel counts the symbols of one
   * name whatever they are (`klp_find_object_symbol`), a program functions and data apart.
   */
  constructor(
    elf: ElfFile,
    objectName: string,
    drafts: readonly TargetSymbolDraft[],
    options: { readonly files?: ReadonlySet<string>; readonly isKernel?: boolean } = {},
  ) {
    this.elf = elf;
    this.objectName = objectName;
    this.isKernel = options.isKernel ?? false;
    this.#files = options.files ?? new Set();
    const groups = new Map<string, TargetSymbolDraft[]>();
    for (const draft of drafts)
      push(groups, this.isKernel ? draft.name : `${draft.kind === 'func'} ${draft.name}`, draft);
    for (const group of groups.values()) {
      group.sort((a, b) => a.address - b.address);
      group.forEach((draft, i) => {
        const symbol: TargetSymbol = { ...draft, sympos: group.length === 1 ? 0 : i + 1 };
        push(this.#byName, symbol.name, symbol);
        push(this.#byStableName, stableName(symbol.name), symbol);
        push(this.#byAddress, symbol.address, symbol);
      });
    }
  }

  /** `symbolSource` is the separate debug file of a stripped target, else the target itself. */
  static ofElf(elf: ElfFile, symbolSource: ElfFile, objectName: string): TargetModel {
    if (symbolSource.symbols.length === 0) {
      throw new LivegraftError(
        'target-stripped',
        `${elf.source} has no symbol table and no separate debug file was found`,
        {
          remedy:
            'install its debug symbols (the -dbgsym package), name the folder of its debug file with --debug-dir, or give an unstripped copy of the build as --target',
          details: { target: elf.source },
        },
      );
    }
    const drafts: TargetSymbolDraft[] = [];
    const files = new Set<string>();
    let fileName: string | undefined;
    for (const symbol of symbolSource.symbols) {
      if (symbol.type === c.STT_FILE) {
        fileName = symbol.name === '' ? undefined : symbol.name;
        if (fileName !== undefined) files.add(baseNameOf(fileName));
      }
      const kind = kindOf(symbol);
      if (kind === undefined || symbol.sectionIndex === c.SHN_UNDEF || symbol.name === '') continue;
      const isLocal = symbol.binding === c.STB_LOCAL;
      drafts.push({
        // The linker appends the version to names that come from libraries.
        name: symbol.name.replace(/@.*/, ''),
        address: symbol.value,
        sizeBytes: symbol.sizeBytes,
        kind,
        isLocal,
        fileName: isLocal ? fileName : undefined,
      });
    }
    return new TargetModel(elf, objectName, drafts, { files });
  }

  /** Whether a source file is among those that the target was linked from; true when the linker recorded none. */
  mayHaveFile(name: string | undefined): boolean {
    return this.#files.size === 0 || name === undefined || this.#files.has(baseNameOf(name));
  }

  symbolsAt(address: number): readonly TargetSymbol[] {
    return this.#byAddress.get(address) ?? [];
  }

  /** The symbol at the next address before (-1) or behind (1) one that has a symbol. */
  symbolBeside(address: number, step: number): TargetSymbol | undefined {
    this.#order ??= Float64Array.from(this.#byAddress.keys()).sort();
    let [low, high] = [0, this.#order.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#order[middle] as number) < address) low = middle + 1;
      else high = middle;
    }
    const beside = this.#order[low + step];
    return beside === undefined ? undefined : this.symbolsAt(beside)[0];
  }

  symbolsNamed(name: string): readonly TargetSymbol[] {
    return this.#byName.get(name) ?? [];
  }

  /**
   * The symbols that a definition of a source file can be: a global by its name; a static one by name and file, or,
   * when its name carries a number, by the name without it.
   */
  candidates(
    name: string,
    isLocal: boolean,
    fileName: string | undefined,
    isFunction: boolean,
  ): readonly TargetSymbol[] {
    const fits = (s: TargetSymbol) => (s.kind === 'func') === isFunction;
    if (!isLocal) return this.symbolsNamed(name).filter((s) => fits(s) && !s.isLocal);
    const inFile = (s: TargetSymbol) =>
      s.fileName === undefined || fileName === undefined || baseNameOf(s.fileName) === baseNameOf(fileName);
    const exact = this.symbolsNamed(name).filter((s) => fits(s) && s.isLocal && inFile(s));
    if (exact.length > 0) return exact;
    return (this.#byStableName.get(stableName(name)) ?? []).filter((s) => fits(s) && s.isLocal && inFile(s));
  }
}

function baseNameOf(path: string): string {
  return path.replace(/^.*\//, '');
}

function kindOf(symbol: ElfSymbol): TargetSymbol['kind'] | undefined {
  switch (symbol.type) {
    case c.STT_FUNC:
    case c.STT_GNU_IFUNC:
      return 'func';
    case c.STT_OBJECT:
    case c.STT_COMMON:
      return 'object';
    case c.STT_TLS:
      return 'tls';
    default:
      return undefined;
  }
}

function push<K, V>(map: Map<K, V[]>, key: K, value: V): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [value]);
  else list.push(value);
}
