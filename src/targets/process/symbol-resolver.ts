import { LivegraftError } from '../../base/errors.js';
import {
  PT_TLS,
  R_X86_64_DTPMOD64,
  R_X86_64_GLOB_DAT,
  R_X86_64_IRELATIVE,
  R_X86_64_JUMP_SLOT,
  SHN_UNDEF,
  STB_LOCAL,
  STB_WEAK,
  STT_GNU_IFUNC,
} from '../../elf/constants.js';
import type { ElfFile, ElfSymbol } from '../../elf/elf-file.js';
import type { ProcessMemory } from './memory.js';
import type { LoadedModule } from './modules.js';

/**
 * Binds the symbols that a patch takes from outside its object the way the dynamic linker bound them for the object
 * itself, without running any code of the target: what the object's own GOT holds comes first, since that is the
 * binding its old code uses (interposition, symbol versions and IFUNC choices included).
 */
export class SymbolResolver {
  readonly #memory: ProcessMemory;
  readonly #object: LoadedModule;
  /** The object first: its own bindings count most. */
  readonly #modules: readonly LoadedModule[];
  readonly #searchOrder: readonly LoadedModule[];
  readonly #gotSlots = new Map<LoadedModule, ReadonlyMap<string, readonly GotSlot[]>>();

  /** `modules` in the order in which the dynamic linker searches them, the executable first. */
  constructor(memory: ProcessMemory, object: LoadedModule, modules: readonly LoadedModule[]) {
    this.#memory = memory;
    this.#object = object;
    this.#modules = [object, ...modules.filter((m) => m !== object)];
    this.#searchOrder = modules;
  }

  /** The target address that `name` means to the object, undefined when no module defines it. */
  resolve(name: string): number | undefined {
    for (const module of this.#modules) {
      const bound = this.#boundInGot(module, name);
      if (bound !== undefined) return bound;
    }
    let weak: number | undefined;
    for (const module of this.#searchOrder) {
      const symbol = findDefinition(module.elf, name);
      if (symbol === undefined) continue;
      const address = this.#addressOf(module, symbol);
      if (address === undefined) continue;
      if (symbol.binding !== STB_WEAK) return address;
      weak ??= address;
    }
    return weak;
  }

  /** Offset of a TLS symbol (by its `st_value`) from the thread pointer, for an executable's own TLS block. */
  threadOffset(symbolValue: number): number | undefined {
    if (!this.#isExecutable()) return undefined;
    const segment = this.#object.elf.segments.find((s) => s.type === PT_TLS);
    if (segment === undefined) return undefined;
    // Variant II (ELF Handling for TLS, section 3): the executable's block ends at the thread pointer.
    const align = Math.max(1, segment.alignment);
    const size = segment.memorySizeBytes + mod(-segment.memorySizeBytes - segment.address, align);
    return symbolValue - size;
  }

  /** The object's TLS module id, as the dynamic linker stored it in the object's own GOT. */
  tlsModuleId(): number | undefined {
    if (this.#isExecutable()) return 1;
    const slot = this.#object.elf.dynamicRelocations.find(
      (r) => r.type === R_X86_64_DTPMOD64 && r.symbolIndex === 0,
    );
    const any = slot ?? this.#object.elf.dynamicRelocations.find((r) => r.type === R_X86_64_DTPMOD64);
    if (any === undefined) return undefined;
    const id = Number(this.#memory.readExactly(this.#object.bias + any.offset, 8).readBigUInt64LE(0));
    return id > 0 && id < 65536 ? id : undefined;
  }

  #isExecutable(): boolean {
    return this.#object === this.#searchOrder[0];
  }

  #boundInGot(module: LoadedModule, name: string): number | undefined {
    let slots = this.#gotSlots.get(module);
    if (slots === undefined) {
      slots = collectGotSlots(module.elf);
      this.#gotSlots.set(module, slots);
    }
    for (const slot of slots.get(name) ?? []) {
      const value = Number(this.#memory.readExactly(module.bias + slot.offset, 8).readBigUInt64LE(0));
      // Before the first call of a lazily bound function its slot points back into the module's own PLT.
      if (value === 0) continue;
      if (
        slot.lazy &&
        value >= module.start &&
        value < module.end &&
        findDefinition(module.elf, name) === undefined
      ) {
        continue;
      }
      if (this.#modules.some((m) => value >= m.start && value < m.end)) return value;
    }
    return undefined;
  }

  #addressOf(module: LoadedModule, symbol: ElfSymbol): number | undefined {
    const address = module.bias + symbol.value;
    if (symbol.type !== STT_GNU_IFUNC) return address;
    // The resolver's choice, found where the dynamic linker stored it; running the resolver is out of the question.
    for (const other of this.#modules) {
      for (const relocation of other.elf.dynamicRelocations) {
        if (relocation.type !== R_X86_64_IRELATIVE || other.bias + relocation.addend !== address) continue;
        const chosen = Number(this.#memory.readExactly(other.bias + relocation.offset, 8).readBigUInt64LE(0));
        if (chosen !== 0 && chosen !== address) return chosen;
      }
    }
    throw new LivegraftError(
      'ifunc-unresolved',
      `${symbol.name} of ${module.name} is chosen at run time (IFUNC), and no module of the process has it bound yet`,
      {
        remedy: 'let the program call it once, or start it with LD_BIND_NOW=1',
        details: { symbol: symbol.name, module: module.name },
      },
    );
  }
}

interface GotSlot {
  readonly offset: number;
  readonly lazy: boolean;
}

function collectGotSlots(elf: ElfFile): ReadonlyMap<string, readonly GotSlot[]> {
  const slots = new Map<string, GotSlot[]>();
  for (const relocation of elf.dynamicRelocations) {
    const lazy = relocation.type === R_X86_64_JUMP_SLOT;
    if (!lazy && relocation.type !== R_X86_64_GLOB_DAT) continue;
    const name = elf.dynamicSymbols[relocation.symbolIndex]?.name;
    if (name === undefined || name === '') continue;
    const list = slots.get(name);
    if (list === undefined) slots.set(name, [{ offset: relocation.offset, lazy }]);
    else list.push({ offset: relocation.offset, lazy });
  }
  return slots;
}

/** A definition that other modules may bind to; the default version where there are several. */
function findDefinition(elf: ElfFile, name: string): ElfSymbol | undefined {
  let hidden: ElfSymbol | undefined;
  for (const symbol of elf.dynamicSymbols) {
    if (symbol.sectionIndex === SHN_UNDEF || symbol.binding === STB_LOCAL || symbol.name !== name) continue;
    if (!symbol.versionHidden) return symbol;
    hidden ??= symbol;
  }
  return hidden;
}

function mod(value: number, modulus: number): number {
  return ((value % modulus) + modulus) % modulus;
}
