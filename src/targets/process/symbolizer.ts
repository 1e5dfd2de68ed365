import { STT_FUNC, STT_GNU_IFUNC } from '../../elf/constants.js';
import type { LoadedModule } from './modules.js';
import { partsOf } from './patch-objects.js';
import type { RegisteredPatch } from './registry.js';

export interface FoundSymbol {
  readonly name: string;
  readonly address: number;
}

interface FunctionTable {
  readonly addresses: Float64Array;
  readonly ends: Float64Array;
  readonly names: readonly (() => string)[];
}

/** Names for addresses, for reports: nothing is decided by them. */
export class Symbolizer {
  readonly #modules: readonly LoadedModule[];
  readonly #patches: readonly RegisteredPatch[];
  readonly #tables = new Map<LoadedModule, FunctionTable>();

  constructor(modules: readonly LoadedModule[], patches: readonly RegisteredPatch[]) {
    this.#modules = modules;
    this.#patches = patches;
  }

  find(address: number): FoundSymbol | undefined {
    for (const patch of this.#patches) {
      const symbol = partsOf(patch)
        .flatMap((part) => part.symbols)
        .find((s) => address >= s.address && address < s.address + s.sizeBytes);
      if (symbol !== undefined) return { name: `${symbol.name} [${patch.name}]`, address: symbol.address };
    }
    const module = this.#modules.find((m) => address >= m.start && address < m.end);
    if (module === undefined) return undefined;
    let table = this.#tables.get(module);
    if (table === undefined) {
      table = buildTable(module);
      this.#tables.set(module, table);
    }
    return search(table, address);
  }

  /** `name+0x12`; `before` is added back when the address was taken inside a call. */
  describe(address: number, before: 0 | 1): string | undefined {
    const symbol = this.find(address);
    if (symbol === undefined) return undefined;
    const offset = address + before - symbol.address;
    return offset === 0 ? symbol.name : `${symbol.name}+0x${offset.toString(16)}`;
  }
}

function buildTable(module: LoadedModule): FunctionTable {
  const { elf, bias } = module;
  const symbols = elf.symbols.length > 0 ? elf.symbols : elf.dynamicSymbols;
  const functions = symbols
    .filter((s) => (s.type === STT_FUNC || s.type === STT_GNU_IFUNC) && s.sectionIndex !== 0)
    .sort((a, b) => a.value - b.value || a.binding - b.binding);
  return {
    addresses: Float64Array.from(functions, (s) => s.value + bias),
    ends: Float64Array.from(functions, (s) => s.value + bias + Math.max(1, s.sizeBytes)),
    names: functions.map((s) => () => s.name),
  };
}

function search(table: FunctionTable, address: number): FoundSymbol | undefined {
  let low = 0;
  let high = table.addresses.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((table.addresses[middle] as number) <= address) low = middle + 1;
    else high = middle;
  }
  const name = table.names[low - 1];
  if (name === undefined || address >= (table.ends[low - 1] as number)) return undefined;
  return { name: name(), address: table.addresses[low - 1] as number };
}
