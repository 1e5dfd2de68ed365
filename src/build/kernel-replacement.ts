import { x86_64 } from '../arch/x86-64/index.js';
import { hex, linkAddress } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import type { BtfFile } from '../btf/btf.js';
import { parseBtf } from '../btf/parse-btf.js';
import * as c from '../elf/constants.js';
import type { ElfFile, ElfRelocation, ElfSection, ElfSymbol } from '../elf/elf-file.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import { isInitSection, type ModuleImage } from '../kernel-image/module-image.js';
import type { KernelSymbol } from '../kernel-image/symbol-table.js';
import type { PatchSection, PatchSectionKind, PatchSymbol } from '../patch/content.js';
import { type Digest, writePatch } from '../patch/file.js';
import {
  MANIFEST_VERSION,
  type PatchDeclarations,
  type PatchFunction,
  type PatchManifest,
  type PatchSymbolAddress,
} from '../patch/manifest.js';
import { readDeclarations } from './declarations.js';
import { NOP5, UNPATCHABLE_SECTIONS } from './kernel-code.js';
import { VMLINUX } from './kernel-target.js';
import { LinkedModule } from './linked-module.js';
import { ModuleEntries } from './module-entries.js';
import { expectModuleOf } from './module-target.js';
import { ObjectModel } from './object-model.js';

export interface ReplacementOptions {
  readonly name: string;
  readonly description: string;
  readonly digest: Digest;
  readonly createdAt: string;
  /** Modules whose functions may be replaced, too: what they define is looked up in them first. */
  readonly modules?: readonly ModuleImage[];
  /** What is declared on the command line. */
  readonly declarations?: PatchDeclarations;
}

/** A symbol of the kernel or of a module, as a patch names it. */
interface FoundSymbol {
  /** `vmlinux`, or a module's name. */
  readonly object: string;
  readonly name: string;
  readonly kind: 'func' | 'object';
  /** A link address; in a module's text the place behind its start. */
  readonly address: number;
  readonly sizeBytes: number;
  readonly bytes: () => Uint8Array;
}

const KEPT = /^\.(?:(?:text|rodata|data|bss)(?:$|\.)|livegraft\.states$)/;
/** What the kernel would have to be told of, and why its absence is not safe. */
const REFUSED: readonly (readonly [RegExp, string])[] = [
  [/^\.altinstructions$/, 'code that the kernel rewrites for its CPU at boot (alternatives)'],
  [/^\.parainstructions$/, 'calls that the kernel rewrites for its hypervisor (paravirt)'],
  [/^__jump_table$/, 'jump labels (static keys)'],
  [/^__bug_table$/, 'BUG or WARN'],
  [/^__ex_table$/, 'instructions that may fault (user access)'],
  ...UNPATCHABLE_SECTIONS,
];
const PART = /\.(?:cold|part\.\d+|isra\.\d+|constprop\.\d+)(?:\.|$)/;

/**
 * Makes a patch from one object file whose functions take the place of the kernel's of the same names. What it refers to
 * is looked up in the symbols of the modules that are given, then in the kernel's. Throws a LivegraftError that names all that
 * can't be patched: `special-section`, `symbol-ambiguous`, `symbol-unresolved`, `nothing-changed`, `wrong-target`.
 */
export function buildReplacement(
  object: ElfFile,
  image: KernelImage,
  options: ReplacementOptions,
): { readonly bytes: Uint8Array; readonly manifest: PatchManifest } {
  if (image.buildId === undefined) {
    throw new LivegraftError('kernel-image-incomplete', `${image.source} has no build-id`, {
      remedy: 'a kernel is recognised by its build-id: give one that was linked with --build-id',
    });
  }
  const modules = options.modules ?? [];
  for (const module of modules) expectModuleOf(image, module);
  refuseSpecialSections(object);
  const kept = object.sections.filter(
    (section) =>
      (section.flags & c.SHF_ALLOC) !== 0 && section.sizeBytes > 0 && kindOf(section) !== undefined,
  );
  const indexOf = new Map(kept.map((section, index) => [section.index, index]));
  const { callbacks, states } = readDeclarations(new ObjectModel(object, x86_64.decoder));
  const variables = states.map(({ variable }) => variable.symbol);
  const symbols = new SymbolConversion(object, image, modules, indexOf, variables);
  const sections = kept.map((section) => convertSection(object, section, symbols));
  const functions = object.symbols
    .filter((symbol) => symbol.type === c.STT_FUNC && indexOf.has(symbol.sectionIndex))
    .filter((symbol) => symbol.sizeBytes > 0 && !PART.test(symbol.name));
  const entries = new Map(modules.map((module) => [module.name, entriesOf(module, image)]));
  // The kernel may have functions of their names; these are the patch's own.
  const isCallback = new Set(Array.from(callbacks.values(), ({ symbol }) => symbol.index));
  const replaced = functions.flatMap((symbol) => {
    if (isCallback.has(symbol.index)) return [];
    const old = symbols.findText(symbol.name);
    if (old === undefined) return [];
    const displaced = entries.get(old.object)?.plan(old);
    const fn = describe(symbol, old, object, options.digest, symbols);
    return [{ object: old.object, fn: displaced === undefined ? fn : { ...fn, displaced } }];
  });
  symbols.expectAllResolved();
  if (replaced.length === 0) {
    throw new LivegraftError(
      'nothing-changed',
      `${object.source} defines no function that ${[image.release, ...modules.map((m) => m.name)].join(' or ')} has`,
      {
        remedy: 'give the new function the name of the one that it replaces',
        details: { functions: functions.map((symbol) => symbol.name).join(', ') },
      },
    );
  }
  const isReplaced = new Set(replaced.map(({ fn }) => fn.newSymbol));
  const objects = [
    { name: VMLINUX, buildId: image.buildId },
    ...modules.map(({ name, buildId }) => ({ name, buildId })),
  ].map(({ name, buildId }) => ({
    name,
    identity: { kind: 'buildId' as const, hex: buildId },
    functions: replaced.filter((each) => each.object === name).map(({ fn }) => fn),
    symbols: symbols.usedOf(name),
  }));
  // What functions of a module refer to in the kernel is the kernel's that it was built with.
  const patched = objects.filter(({ functions, name }) => name === VMLINUX || functions.length > 0);
  const withCallbacks = patched.find((each) => each.functions.length > 0);
  const manifest: PatchManifest = {
    formatVersion: MANIFEST_VERSION,
    name: options.name,
    description: options.description,
    createdAt: options.createdAt,
    tool: 'livegraft 0.1.0',
    architecture: 'x86-64',
    objects: patched.map((each) =>
      each === withCallbacks && callbacks.size > 0
        ? {
            ...each,
            callbacks: Object.fromEntries(Array.from(callbacks, ([kind, { name }]) => [kind, name])),
          }
        : each,
    ),
    ...(states.length > 0 && {
      states: states.map(({ id, version, variable }) => ({ id, version, symbol: variable.name })),
    }),
    newFunctions: functions.map((symbol) => symbol.name).filter((name) => !isReplaced.has(name)),
    ...options.declarations,
    newData: object.symbols
      .filter((symbol) => symbol.type === c.STT_OBJECT && indexOf.has(symbol.sectionIndex))
      .map(({ name, sizeBytes }) => ({ name, sizeBytes })),
    notes: [
      'written by hand: copies of the old functions that the compiler inlined elsewhere stay as they are',
    ],
  };
  return { bytes: writePatch({ manifest, sections, symbols: symbols.all }, options.digest), manifest };
}

/** Functions that the module's own types show to be C: what takes or returns something. Assembly has neither. */
function entriesOf(module: ModuleImage, image: KernelImage): ModuleEntries {
  const section = module.elf.findSection('.BTF');
  let functions: ReadonlySet<string> | undefined;
  const isKnownInC = (name: string) => {
    functions ??= section === undefined ? new Set() : functionsInC(section.data, module.source, image.btf);
    return functions.has(name);
  };
  return new ModuleEntries(module, new LinkedModule(module), x86_64, isKnownInC);
}

function functionsInC(types: Uint8Array, source: string, kernel: BtfFile): ReadonlySet<string> {
  const btf = parseBtf(types, `${source}(.BTF)`, kernel);
  const names = new Set<string>();
  // Those before are the kernel's: another function may have the name there.
  for (let id = kernel.typeCount; id < btf.typeCount; id++) {
    const fn = btf.type(id);
    const prototype = fn.kind === 'func' ? btf.type(fn.typeId) : undefined;
    if (fn.kind !== 'func' || prototype?.kind !== 'funcProto') continue;
    if (prototype.parameters.length > 0 || prototype.returnTypeId !== 0) names.add(fn.name);
  }
  return names;
}

function refuseSpecialSections(object: ElfFile): void {
  const found = object.sections.flatMap((section) => {
    if (section.sizeBytes === 0) return [];
    const reason = REFUSED.find(([pattern]) => pattern.test(section.name));
    return reason === undefined ? [] : [`${section.name}: ${reason[1]}`];
  });
  if (found.length === 0) return;
  throw new LivegraftError(
    'special-section',
    `${object.source} has what can not be patched in: ${found.join('; ')}`,
    {
      remedy: 'write the function without it, or call a function of the kernel that has it',
      details: { sections: found.join('; ') },
    },
  );
}

function kindOf(section: ElfSection): PatchSectionKind | undefined {
  if (section.name === '.eh_frame') return 'ehFrame';
  if (!KEPT.test(section.name)) return undefined;
  if ((section.flags & c.SHF_EXECINSTR) !== 0) return 'text';
  if ((section.flags & c.SHF_WRITE) === 0) return 'readOnly';
  return section.type === c.SHT_NOBITS ? 'zero' : 'readWrite';
}

function convertSection(object: ElfFile, section: ElfSection, symbols: SymbolConversion): PatchSection {
  const kind = kindOf(section) ?? 'readOnly';
  const data = kind === 'zero' ? new Uint8Array() : section.data.slice();
  const relocations: ElfRelocation[] = [];
  for (const relocation of object.relocationsFor(section)) {
    const symbol = object.symbols[relocation.symbolIndex];
    // Nobody traces new code: the call that ftrace would have replaced becomes its nop.
    if (symbol?.name === '__fentry__' && kind === 'text') data.set(NOP5, relocation.offset - 1);
    else relocations.push({ ...relocation, symbolIndex: symbols.convert(relocation, section) });
  }
  return {
    name: section.name,
    kind,
    alignment: Math.max(1, section.alignment),
    data,
    sizeBytes: section.sizeBytes,
    relocations,
  };
}

/** The symbols of the object as those of a patch: its own as they are, those of the kernel and its modules by name. */
class SymbolConversion {
  readonly all: PatchSymbol[] = [];
  readonly #object: ElfFile;
  readonly #image: KernelImage;
  readonly #modules: readonly ModuleImage[];
  readonly #indexOf: ReadonlyMap<number, number>;
  readonly #converted = new Map<number, number>();
  readonly #used = new Map<string, FoundSymbol>();
  readonly #unresolved = new Set<string>();

  constructor(
    object: ElfFile,
    image: KernelImage,
    modules: readonly ModuleImage[],
    indexOf: ReadonlyMap<number, number>,
    variables: readonly ElfSymbol[],
  ) {
    this.#object = object;
    this.#image = image;
    this.#modules = modules;
    this.#indexOf = indexOf;
    // Functions and states are found by name when the patch is loaded, also those that nothing refers to.
    for (const symbol of object.symbols)
      if (symbol.type === c.STT_FUNC && indexOf.has(symbol.sectionIndex)) this.#defined(symbol);
    for (const symbol of variables) this.#defined(symbol);
  }

  /** What the new code refers to in an object. */
  usedOf(object: string): PatchSymbolAddress[] {
    return [...this.#used.values()]
      .filter((symbol) => symbol.object === object)
      .map(({ name, kind, address }) => ({ name, sympos: 0, kind, address: hex(address) }));
  }

  convert(relocation: ElfRelocation, section: ElfSection): number {
    const symbol = this.#object.symbols[relocation.symbolIndex];
    if (symbol === undefined)
      throw new LivegraftError('patch-malformed', `${section.name}: a relocation without a symbol`);
    const known = this.#converted.get(symbol.index);
    if (known !== undefined) return known;
    if (symbol.sectionIndex === c.SHN_UNDEF) return this.#external(symbol);
    if (this.#indexOf.has(symbol.sectionIndex)) return this.#defined(symbol);
    const target = this.#object.sections[symbol.sectionIndex];
    throw new LivegraftError(
      'special-section',
      `${section.name} refers to ${target?.name ?? symbol.name}, which can not be part of a patch`,
      { remedy: 'compile the file with the kernel’s flags for built-in code, and without init sections' },
    );
  }

  /** The function of that name that can be replaced; undefined when there is none. */
  findText(name: string): FoundSymbol | undefined {
    const inModule = this.#findInModules(name, 'func');
    if (inModule !== undefined) return inModule;
    const all = this.#image.symbols.findAll(name).filter((symbol) => /[tTwW]/.test(symbol.type));
    if (all.length > 1) throw ambiguous(name, all.length, this.#image.release);
    const [only] = all;
    const { text } = this.#image;
    if (
      only !== undefined &&
      (only.address < text.address || only.address >= text.address + text.bytes.length)
    )
      throw initCode(name, 'the kernel', 'the kernel has started');
    return only && this.#inKernel(only);
  }

  /** Parts that the compiler split from a function. */
  partsOf({ name, object }: FoundSymbol): FoundSymbol[] {
    return ['cold', 'part.0', 'isra.0', 'constprop.0'].flatMap((suffix) => {
      const part = `${name}.${suffix}`;
      if (object !== VMLINUX) return this.#findInModules(part, 'func') ?? [];
      const all = this.#image.symbols.findAll(part);
      return all.length === 1 ? all.map((symbol) => this.#inKernel(symbol)) : [];
    });
  }

  expectAllResolved(): void {
    if (this.#unresolved.size === 0) return;
    const names = [...this.#unresolved].join(', ');
    throw new LivegraftError(
      'symbol-unresolved',
      `${this.#object.source} refers to ${names}, which ${this.#image.release} does not have`,
      {
        remedy:
          'use what is in /proc/kallsyms of the running kernel; name the module that has it with --module; compile with -fno-pic and without sanitizers',
        details: { symbols: names },
      },
    );
  }

  #findInModules(name: string, kind?: 'func'): FoundSymbol | undefined {
    const found = this.#modules.flatMap((module) =>
      module
        .findAll(name)
        .filter((symbol) => kind === undefined || symbol.kind === kind)
        .map((symbol) => ({ module, symbol })),
    );
    const [first] = found;
    if (first === undefined) return undefined;
    const { module, symbol } = first;
    if (found.length > 1) throw ambiguous(name, found.length, module.name);
    if (isInitSection(symbol.section)) throw initCode(name, module.name, 'the module is loaded');
    return {
      ...{ object: module.name, name, kind: symbol.kind, sizeBytes: symbol.sizeBytes },
      address: symbol.textOffset ?? symbol.value,
      bytes: () => symbol.section.data.slice(symbol.value, symbol.value + symbol.sizeBytes),
    };
  }

  #inKernel({ name, type, address, sizeBytes }: KernelSymbol): FoundSymbol {
    return {
      ...{ object: VMLINUX, name, kind: /[tTwW]/.test(type) ? 'func' : 'object', address, sizeBytes },
      bytes: () => this.#image.elf.bytesAt(linkAddress(address), sizeBytes) ?? new Uint8Array(),
    };
  }

  #findAny(name: string): FoundSymbol | undefined {
    const inModule = this.#findInModules(name);
    if (inModule !== undefined) return inModule;
    const all = this.#image.symbols.findAll(name);
    if (all.length > 1) throw ambiguous(name, all.length, this.#image.release);
    return all[0] && this.#inKernel(all[0]);
  }

  #external(symbol: ElfSymbol): number {
    const found = this.#findAny(symbol.name);
    if (found === undefined) this.#unresolved.add(symbol.name);
    else this.#used.set(symbol.name, found);
    return this.#add(symbol, {
      kind: 'external',
      object: found?.object ?? VMLINUX,
      name: symbol.name,
      sympos: 0,
      isThreadLocal: false,
      isWeak: false,
    });
  }

  #defined(symbol: ElfSymbol): number {
    const section = this.#object.sections[symbol.sectionIndex];
    return this.#add(symbol, {
      kind: 'defined',
      name: symbol.name === '' ? `.Lsection.${section?.name ?? ''}` : symbol.name,
      section: this.#indexOf.get(symbol.sectionIndex) ?? 0,
      value: symbol.value,
      sizeBytes: symbol.sizeBytes,
      isFunction: symbol.type === c.STT_FUNC,
    });
  }

  #add(symbol: ElfSymbol, converted: PatchSymbol): number {
    this.all.push(converted);
    this.#converted.set(symbol.index, this.all.length - 1);
    return this.all.length - 1;
  }
}

function ambiguous(name: string, count: number, where: string): LivegraftError {
  return new LivegraftError('symbol-ambiguous', `${where} has ${count} symbols ${name}`, {
    remedy: 'patch a function that has its name for itself, such as a caller',
    details: { symbol: name, count },
  });
}

function initCode(name: string, where: string, when: string): LivegraftError {
  return new LivegraftError('init-code', `${name} is init code of ${where}: it is gone once ${when}`, {
    remedy: 'patch a function that still runs',
    details: { function: name },
  });
}

function describe(
  symbol: ElfSymbol,
  old: FoundSymbol,
  object: ElfFile,
  digest: Digest,
  symbols: SymbolConversion,
): PatchFunction {
  const range = ({ name, address, sizeBytes, bytes }: FoundSymbol) => ({
    ...{ name, address: hex(address), sizeBytes },
    sha256: digest(bytes()),
  });
  const newParts = object.symbols.filter(
    (part) => part.type === c.STT_FUNC && PART.test(part.name) && part.name.startsWith(`${symbol.name}.`),
  );
  return {
    name: symbol.name,
    sympos: 0,
    old: range(old),
    parts: symbols.partsOf(old).map(range),
    newSymbol: symbol.name,
    newParts: newParts.map((part) => part.name),
  };
}
