import { hex } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { ElfRelocation, ElfSection } from '../elf/elf-file.js';
import type { PatchSection, PatchSectionKind, PatchSymbol } from '../patch/content.js';
import { LINKABLE_RELOCATIONS } from '../patch/link.js';
import type { PatchSymbolAddress } from '../patch/manifest.js';
import { type Comparison, inRange } from './compare.js';
import { expectKernelSection, type KernelCodeHost, rewriteKernelCode } from './kernel-code.js';
import { type Definition, type ObjectModel, parentOfPart, type Reference } from './object-model.js';
import { FORGETFUL } from './refusals.js';
import type { TargetModel, TargetSymbol } from './target-model.js';

/** What goes into a patch of one compiled file. */
export interface Selection {
  readonly sections: readonly PatchSection[];
  readonly symbols: readonly PatchSymbol[];
  /** Symbols of the target, and of objects that it may refer to, that the code refers to. */
  readonly targetSymbols: readonly (PatchSymbolAddress & { readonly object: string })[];
  readonly newFunctions: readonly string[];
  readonly newData: readonly { readonly name: string; readonly sizeBytes: number }[];
}

/** Picks the one target symbol that a definition of the source file is; throws by name when it can't be told. */
export type FindInTarget = (definition: Definition) => TargetSymbol | undefined;

/**
 * Takes the changed functions, and what they need that the target does not have: new functions and data, strings,
 * constants, jump tables. Everything else becomes a reference into the target. `shared` are the new names that one changed file of the
 * target defines for the others.
 */
export function selectPatch(
  patched: ObjectModel,
  comparison: Comparison,
  roots: readonly Definition[],
  target: TargetModel,
  findInTarget: FindInTarget,
  prefix: string,
  shared: ReadonlySet<string> = new Set(),
): Selection {
  const selector = new Selector(patched, comparison, target, findInTarget, prefix, shared);
  for (const root of roots) selector.include(root.section);
  return selector.finish();
}

/** Behind every section index of an object. */
const FIRST_ADDED = 2 ** 20;

class Selector {
  readonly #patched: ObjectModel;
  readonly #comparison: Comparison;
  readonly #target: TargetModel;
  readonly #findInTarget: FindInTarget;
  readonly #prefix: string;
  readonly #shared: ReadonlySet<string>;
  readonly #order: ElfSection[] = [];
  readonly #included = new Map<number, number>();
  readonly #symbols: PatchSymbol[] = [];
  readonly #symbolIndex = new Map<string, number>();
  readonly #targetSymbols = new Map<string, Selection['targetSymbols'][number]>();
  readonly #newFunctions: string[] = [];
  readonly #newData: { name: string; sizeBytes: number }[] = [];
  /** Sections that the object does not have, with relocations of the patch. */
  readonly #added = new Map<ElfSection, readonly ElfRelocation[]>();

  constructor(
    patched: ObjectModel,
    comparison: Comparison,
    target: TargetModel,
    findInTarget: FindInTarget,
    prefix: string,
    shared: ReadonlySet<string>,
  ) {
    this.#shared = shared;
    this.#patched = patched;
    this.#comparison = comparison;
    this.#target = target;
    this.#findInTarget = findInTarget;
    this.#prefix = prefix;
  }

  /** Queues a section of the patched object, once. Its own references are followed in {@link finish}. */
  include(section: ElfSection): number {
    const known = this.#included.get(section.index);
    if (known !== undefined) return known;
    if (this.#target.isKernel) expectKernelSection(this.#patched, section);
    const index = this.#order.length;
    this.#order.push(section);
    this.#included.set(section.index, index);
    for (const definition of this.#patched.definitionsIn(section)) this.#noteNew(definition);
    return index;
  }

  finish(): Selection {
    const sections: PatchSection[] = [];
    // Following references includes more sections: the list grows while it is gone through.
    for (let i = 0; i < this.#order.length; i++) sections.push(this.#convert(this.#order[i] as ElfSection));
    for (const section of this.#order) {
      for (const { name, kind, symbol } of this.#patched.definitionsIn(section)) {
        this.#defined(section, name, symbol.value, symbol.sizeBytes, kind === 'function');
      }
    }
    const ehFrame = this.#convertFrames();
    if (ehFrame !== undefined) sections.push(ehFrame);
    return {
      sections,
      symbols: this.#symbols,
      targetSymbols: [...this.#targetSymbols.values()],
      newFunctions: this.#newFunctions,
      newData: this.#newData,
    };
  }

  #convert(section: ElfSection): PatchSection {
    const kind = sectionKind(section);
    const { data, relocations } = this.#contents(section, kind);
    return {
      name: this.#sectionName(section, kind),
      kind,
      alignment: Math.max(1, section.alignment),
      data: kind === 'zero' ? new Uint8Array() : data,
      sizeBytes: section.sizeBytes,
      relocations,
    };
  }

  #contents(section: ElfSection, kind: PatchSectionKind): Pick<PatchSection, 'data' | 'relocations'> {
    const added = this.#added.get(section);
    if (added !== undefined) return { data: section.data, relocations: added };
    if (this.#target.isKernel && kind === 'text')
      return rewriteKernelCode(section, this.#patched.specialEntriesOf(section), this.#kernelHost);
    const relocations = this.#patched.relocationsOf(section).map((r) => this.#relocate(section, r));
    return { data: section.data, relocations };
  }

  readonly #kernelHost: KernelCodeHost = {
    relocate: (section, relocation) => this.#relocate(section, relocation),
    local: (section) => this.#local(section),
    external: (name) => {
      const found = this.#target.kernelSymbol(name);
      return found && this.#external(found);
    },
    add: (name, flags, data, relocations) => {
      const template = this.#patched.elf.sections[0] as ElfSection;
      const number = this.#added.size;
      const section: ElfSection = {
        ...template,
        index: FIRST_ADDED + number,
        name: `${name}.${this.#prefix}${number}`,
        type: c.SHT_PROGBITS,
        flags,
        sizeBytes: data.length,
        alignment: 4,
        data,
      };
      this.#added.set(section, relocations);
      this.include(section);
      return section;
    },
    model: () => this.#patched,
  };

  /** Sections of several files may have one name; a patch file keeps them apart. */
  #sectionName(section: ElfSection, kind: PatchSectionKind): string {
    return kind === 'text' ? section.name : `${section.name}.${this.#prefix}${section.index}`;
  }

  #relocate(section: ElfSection, relocation: ElfRelocation): ElfRelocation {
    if (!LINKABLE_RELOCATIONS.has(relocation.type)) throw unsupported(this.#patched, section, relocation);
    const reference = this.#patched.referenceOf(section, relocation);
    const { offset, type } = relocation;
    const symbol = this.#symbolValue(relocation);
    switch (reference.kind) {
      case 'undefined':
        return { offset, type, symbolIndex: this.#undefinedSymbol(reference), addend: relocation.addend };
      case 'definition': {
        const external = this.#externalDefinition(
          reference.definition,
          isAddressOf(section, relocation, reference),
        );
        const inObject = symbol + relocation.addend;
        if (external !== undefined) {
          return {
            offset,
            type,
            symbolIndex: external,
            addend: inObject - reference.definition.symbol.value,
          };
        }
        return { offset, type, symbolIndex: this.#local(reference.definition.section), addend: inObject };
      }
      case 'string':
      case 'anonymous':
        return {
          offset,
          type,
          symbolIndex: this.#local(reference.section),
          addend: symbol + relocation.addend,
        };
    }
  }

  #symbolValue(relocation: ElfRelocation): number {
    return this.#patched.elf.symbols[relocation.symbolIndex]?.value ?? 0;
  }

  /** A symbol at the start of an included section. */
  #local(section: ElfSection): number {
    this.include(section);
    return this.#defined(section, `.Lsection.${this.#prefix}${section.index}`, 0, 0, false);
  }

  #defined(section: ElfSection, name: string, value: number, sizeBytes: number, isFunction: boolean): number {
    const index = this.include(section);
    return this.#intern(`defined ${name}`, {
      kind: 'defined',
      name,
      section: index,
      value,
      sizeBytes,
      isFunction,
    });
  }

  #intern(key: string, symbol: PatchSymbol): number {
    let index = this.#symbolIndex.get(key);
    if (index === undefined) {
      index = this.#symbols.length;
      this.#symbols.push(symbol);
      this.#symbolIndex.set(key, index);
    }
    return index;
  }

  /** The symbol in the target that a definition is, undefined when it goes into the patch. */
  #externalDefinition(definition: Definition, isAddress: boolean): number | undefined {
    const original = this.#comparison.counterpart.get(definition);
    // A function that was patched keeps its address for those who compare or store it; its old entry leads on. A
    // variable that shares a section with something new stays where it is all the same.
    if (
      definition.kind === 'function' &&
      this.#included.has(definition.section.index) &&
      !(isAddress && original !== undefined)
    )
      return undefined;
    // Split parts belong to their function's version.
    if (parentOfPart(definition.name) !== undefined) return undefined;
    if (original === undefined) {
      if (definition.kind === 'tls') throw newThreadLocal(definition);
      return undefined;
    }
    const found = this.#findInTarget(original);
    if (found !== undefined)
      return this.#isBetterCopied(found, definition) ? undefined : this.#external(found);
    if (definition.kind === 'function') return undefined;
    if ((definition.section.flags & c.SHF_WRITE) !== 0 || definition.kind === 'tls') {
      throw new LivegraftError(
        'symbol-unresolved',
        `${this.#patched.source}: ${definition.name} is not among the symbols of ${this.#target.objectName}`,
        { remedy: 'use an unstripped target or its debug file', details: { symbol: definition.name } },
      );
    }
    // A constant that the target keeps without a name: a copy has the same value.
    return undefined;
  }

  /**
   * What a loaded module can't tell by name, and does as well as a copy: constants that hold no address, and what only remembers that
   * something was said.
   */
  #isBetterCopied({ sympos, name }: TargetSymbol, { section, symbol }: Definition): boolean {
    if (this.#target.surroundings === undefined || sympos === 0) return false;
    if (FORGETFUL.test(name)) return true;
    const { value, sizeBytes } = symbol;
    return (
      (section.flags & c.SHF_WRITE) === 0 &&
      inRange(this.#patched.relocationsOf(section), value, sizeBytes).length === 0
    );
  }

  #external(symbol: TargetSymbol): number {
    const { object, name, sympos, kind, address } = symbol;
    expectReferable(symbol, this.#target);
    const key = `${object} ${name},${sympos}`;
    this.#targetSymbols.set(`${kind === 'func'} ${key}`, {
      object,
      name,
      sympos,
      kind,
      address: hex(address),
    });
    return this.#intern(`external ${kind === 'func'} ${key}`, {
      kind: 'external',
      object,
      name,
      sympos,
      isThreadLocal: kind === 'tls',
      isWeak: false,
    });
  }

  #undefinedSymbol(reference: Extract<Reference, { kind: 'undefined' }>): number {
    const { name, isWeak } = reference;
    // A definition in another file of the same program, or a library's variable that was copied into it.
    const found = this.#target.globalNamed(name);
    if (found !== undefined) return this.#external(found);
    if (this.#target.isKernel && !isWeak && !this.#shared.has(name)) {
      const isModule = this.#target.surroundings !== undefined;
      throw new LivegraftError(
        'symbol-unresolved',
        `the new code refers to ${name}, which ${isModule ? `neither ${this.#target.objectName} nor the kernel has, and no module exports that is given` : 'the kernel does not have'}`,
        {
          remedy: isModule
            ? 'use what is in /proc/kallsyms of the running kernel; name the module that exports it with --module'
            : 'use what is in /proc/kallsyms of the running kernel; the kernel can not refer to what is in modules',
          details: { symbols: name },
        },
      );
    }
    const isThreadLocal = reference.symbol.type === c.STT_TLS;
    return this.#intern(`external * ${name}`, {
      kind: 'external',
      object: '*',
      name,
      sympos: 0,
      isThreadLocal,
      isWeak,
    });
  }

  #noteNew(definition: Definition): void {
    if (this.#comparison.counterpart.has(definition) && definition.kind !== 'function') return;
    if (definition.kind === 'function') {
      const isPart = parentOfPart(definition.name) !== undefined;
      const isNew = !this.#comparison.changedFunctions.some((pair) => pair.patched === definition);
      if (isNew && !isPart) this.#newFunctions.push(definition.name);
    } else this.#newData.push({ name: definition.name, sizeBytes: definition.symbol.sizeBytes });
  }

  /** The unwind entries of the included code, with the CIEs they use. */
  #convertFrames(): PatchSection | undefined {
    const frames = this.#patched.elf.findSection('.eh_frame');
    if (frames === undefined) return undefined;
    return cutFrames(this.#patched, frames, (section) => this.#included.has(section.index), {
      local: (section) => this.#local(section),
      name: `.eh_frame.${this.#prefix}`,
    });
  }
}

/** Throws `init-code`, and `symbol-ambiguous` for what the names in a loaded module can't tell apart. */
export function expectReferable(
  { object, name, sympos, isInit }: TargetSymbol,
  { surroundings }: TargetModel,
): void {
  if (isInit === true) {
    throw new LivegraftError(
      'init-code',
      `${name} is init code or data of ${object}: it is gone once the module is loaded`,
      { remedy: 'write the change without it', details: { symbol: name } },
    );
  }
  if (surroundings === undefined || object === surroundings.kernel.objectName || sympos === 0) return;
  throw new LivegraftError('symbol-ambiguous', `${object} has several symbols ${name}`, {
    remedy: 'patch a function that has its name for itself, such as a caller',
    details: { symbol: name },
  });
}

/** Whether a reference takes a function's address, instead of calling it or going to a place inside it. */
function isAddressOf(
  section: ElfSection,
  relocation: ElfRelocation,
  reference: Extract<Reference, { kind: 'definition' }>,
): boolean {
  const { definition, offset } = reference;
  if (definition.kind !== 'function' || offset !== 0 || relocation.type === c.R_X86_64_PLT32) return false;
  return definition.section.index !== section.index;
}

function sectionKind(section: ElfSection): PatchSectionKind {
  if ((section.flags & c.SHF_EXECINSTR) !== 0) return 'text';
  if ((section.flags & c.SHF_WRITE) === 0) return 'readOnly';
  return section.type === c.SHT_NOBITS ? 'zero' : 'readWrite';
}

function unsupported(model: ObjectModel, section: ElfSection, { type }: ElfRelocation): LivegraftError {
  const name = model.definitionsIn(section)[0]?.name ?? section.name;
  return new LivegraftError(
    'relocation-unsupported',
    `${name} refers to something by ${c.relocationName(c.EM_X86_64, type)}, which livegraft can not link`,
    {
      remedy:
        'the target needs the small code model and the gnu dialect of thread-local storage (-mtls-dialect=gnu)',
      details: { function: name },
    },
  );
}

function newThreadLocal(definition: Definition): LivegraftError {
  return new LivegraftError('tls-new', `the diff adds the thread-local variable ${definition.name}`, {
    remedy: 'thread-local variables can not be added to a running program; keep the state elsewhere',
    details: { symbol: definition.name },
  });
}

/** Cuts the FDEs of the chosen sections out of an object's `.eh_frame`. */
function cutFrames(
  model: ObjectModel,
  frames: ElfSection,
  isIncluded: (section: ElfSection) => boolean,
  emit: { readonly local: (section: ElfSection) => number; readonly name: string },
): PatchSection | undefined {
  const relocations = model.relocationsOf(frames);
  const view = new DataView(frames.data.buffer, frames.data.byteOffset, frames.data.length);
  const chunks: Uint8Array[] = [];
  const out: ElfRelocation[] = [];
  const cieAt = new Map<number, number>();
  let size = 0;
  const copy = (start: number, end: number): number => {
    const at = size;
    chunks.push(frames.data.slice(start, end));
    size += end - start;
    return at;
  };
  for (let offset = 0; offset + 8 <= frames.data.length; ) {
    const length = view.getUint32(offset, true);
    if (length === 0 || length === 0xffffffff) break;
    const end = offset + 4 + length;
    const id = view.getUint32(offset + 4, true);
    const location = relocations.find((r) => r.offset === offset + 8);
    if (id !== 0 && location !== undefined) {
      const symbol = model.elf.symbols[location.symbolIndex];
      const section = model.elf.sections[symbol?.sectionIndex ?? 0];
      if (symbol !== undefined && section !== undefined && isIncluded(section)) {
        const own = relocations.filter((r) => r.offset > offset + 8 && r.offset < end);
        if (own.length > 0) throw exceptionData(model, section);
        const cie = offset + 4 - id;
        // An entry, and the common part that it names, are to lie in the section as a whole.
        const cieEnd = cie < 0 ? 0 : cie + 4 + view.getUint32(cie, true);
        if (end > frames.data.length || end < offset + 12 || cie < 0 || cieEnd > frames.data.length) {
          throw new LivegraftError(
            'object-malformed',
            `${model.elf.source}: the entry at ${offset} of ${frames.name} reaches beyond it`,
            { remedy: 'compile it again' },
          );
        }
        if (relocations.some((r) => r.offset >= cie && r.offset < cieEnd))
          throw exceptionData(model, section);
        const newCie = cieAt.get(cie) ?? copy(cie, cieEnd);
        cieAt.set(cie, newCie);
        const at = copy(offset, end);
        const chunk = chunks[chunks.length - 1] as Uint8Array;
        new DataView(chunk.buffer).setUint32(4, at + 4 - newCie, true);
        out.push({
          offset: at + 8,
          type: location.type,
          symbolIndex: emit.local(section),
          addend: symbol.value + location.addend,
        });
      }
    }
    offset = end;
  }
  if (size === 0) return undefined;
  const data = new Uint8Array(size);
  let at = 0;
  for (const chunk of chunks) {
    data.set(chunk, at);
    at += chunk.length;
  }
  return { name: emit.name, kind: 'ehFrame', alignment: 8, data, sizeBytes: size, relocations: out };
}

function exceptionData(model: ObjectModel, section: ElfSection): LivegraftError {
  const name = model.definitionsIn(section)[0]?.name ?? section.name;
  return new LivegraftError(
    'exception-data',
    `${name} has exception handling data: an exception could not pass through its new version, which the program's runtime does not know`,
    {
      remedy: 'patch its callers or callees instead, or compile the file with -fno-exceptions',
      details: { function: name },
    },
  );
}
