import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfSymbol } from '../elf/elf-file.js';
import type { CodeRange } from '../patch/displacement.js';
import type { DisplacedEntry } from '../patch/manifest.js';
import { stableName } from './object-model.js';

/** A function or variable of the target file. */
export interface TargetSymbol {
  /** {@link TargetModel.objectName} of the target that defines it. */
  readonly object: string;
  readonly name: string;
  /** 0 when the name is unique among symbols of its kind, else its place by address, from 1. */
  readonly sympos: number;
  readonly address: number;
  readonly sizeBytes: number;
  readonly kind: 'func' | 'object' | 'tls';
  readonly isLocal: boolean;
  /** The source file that a local symbol belongs to, as the linker recorded it. */
  readonly fileName: string | undefined;
  /** It lies in memory that is freed once a module has started. */
  readonly isInit?: boolean;
  /** Another object's, at the place that the target's code has for it: it is known by that place alone. */
  readonly isImport?: boolean;
}

export type TargetSymbolDraft = Omit<TargetSymbol, 'object' | 'sympos'>;

/** What is known of the file of a target. */
export type TargetFile = Pick<
  ElfFile,
  'source' | 'bytes' | 'buildId' | 'type' | 'segments' | 'symbols' | 'dynamicSymbols' | 'bytesAt'
>;

/** What a module may refer to besides its own symbols. */
export interface ModuleSurroundings {
  readonly kernel: TargetModel;
  /** Other modules, and the names that they export. */
  readonly modules: readonly { readonly target: TargetModel; readonly exports: ReadonlySet<string> }[];
}

/** Undefined where the function has the nop of ftrace. */
export type PlanEntry = (fn: CodeRange) => DisplacedEntry | undefined;

/** The executable, library, kernel or module that is to be patched, by symbol. */
export class TargetModel {
  readonly elf: TargetFile;
  /** Last component of its path, or its SONAME; `vmlinux` for a kernel, and a module's name. */
  readonly objectName: string;
  /** A kernel or a module: nothing but symbols of these can be referred to, and boot code is gone. */
  readonly isKernel: boolean;
  /** Of a module. */
  readonly surroundings: ModuleSurroundings | undefined;
  /** Of a module: how one of its functions is redirected that has no nop of ftrace; throws `no-fentry`. */
  readonly planEntry: PlanEntry | undefined;
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
    elf: TargetFile,
    objectName: string,
    drafts: readonly TargetSymbolDraft[],
    options: {
      readonly files?: ReadonlySet<string>;
      readonly isKernel?: boolean;
      readonly surroundings?: ModuleSurroundings;
      readonly planEntry?: PlanEntry;
    } = {},
  ) {
    this.elf = elf;
    this.objectName = objectName;
    this.isKernel = options.isKernel ?? false;
    this.surroundings = options.surroundings;
    this.planEntry = options.planEntry;
    this.#files = options.files ?? new Set();
    const groups = new Map<string, TargetSymbolDraft[]>();
    for (const draft of drafts) {
      if (draft.isImport === true)
        push(this.#byAddress, draft.address, { ...draft, object: objectName, sympos: 0 });
      else push(groups, this.isKernel ? draft.name : `${draft.kind === 'func'} ${draft.name}`, draft);
    }
    for (const group of groups.values()) {
      group.sort((a, b) => a.address - b.address);
      group.forEach((draft, i) => {
        const sympos = group.length === 1 ? 0 : i + 1;
        const symbol: TargetSymbol = { ...draft, object: objectName, sympos };
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
   * What a name means that a source file does not define: a global of the target itself, or, for a module, of the kernel, or one that
   * another module exports.
   */
  globalNamed(name: string): TargetSymbol | undefined {
    const ofTarget = (target: TargetModel) => target.symbolsNamed(name).find((symbol) => !symbol.isLocal);
    const own = ofTarget(this);
    if (own !== undefined || this.surroundings === undefined) return own;
    const { kernel, modules } = this.surroundings;
    const exporting = modules.find(({ target, exports }) => target !== this && exports.has(name));
    return ofTarget(kernel) ?? (exporting && ofTarget(exporting.target));
  }

  /** The kernel's one symbol of a name. */
  kernelSymbol(name: string): TargetSymbol | undefined {
    const all = (this.surroundings?.kernel ?? this).symbolsNamed(name);
    return all.length === 1 ? all[0] : undefined;
  }

  /**
   * The symbols that a definition of a source file can be: a global by its name; a static one by name and file, or,
   * when its name carries a number, by the name without it, if there is none of that very name or `anyNumber` says so.
   */
  candidates(
    name: string,
    isLocal: boolean,
    fileName: string | undefined,
    isFunction: boolean,
    anyNumber = false,
  ): readonly TargetSymbol[] {
    const fits = (s: TargetSymbol) => (s.kind === 'func') === isFunction;
    if (!isLocal) return this.symbolsNamed(name).filter((s) => fits(s) && !s.isLocal);
    const inFile = (s: TargetSymbol) =>
      s.fileName === undefined || fileName === undefined || baseNameOf(s.fileName) === baseNameOf(fileName);
    const exact = this.symbolsNamed(name).filter((s) => fits(s) && s.isLocal && inFile(s));
    if (exact.length > 0 && !anyNumber) return exact;
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
