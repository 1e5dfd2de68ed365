import type { InstructionDecoder } from '../arch/architecture.js';
import { hex, linkAddress } from '../base/brand.js';
import { counted } from '../base/counted.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { PatchSection, PatchSymbol } from '../patch/content.js';
import { type Digest, writePatch } from '../patch/file.js';
import {
  MANIFEST_VERSION,
  type PatchCallbacks,
  type PatchDeclarations,
  type PatchFunction,
  type PatchManifest,
  type PatchSymbolAddress,
  type PatchSystemState,
} from '../patch/manifest.js';
import type { Comparison, Pair } from './compare.js';
import type { CompiledPair } from './compiled-pair.js';
import { declaredTwice } from './declarations.js';
import type { BuildEvent } from './events.js';
import { addExceptionSearch } from './kernel-exceptions.js';
import { type Definition, type ObjectModel, parentOfPart } from './object-model.js';
import { type Find, nameOfFile, type ProvenPair, proveAll } from './prove-pairs.js';
import { expectReferable, selectPatch } from './select.js';
import type { TargetModel, TargetSymbol } from './target-model.js';

export interface MakeOptions {
  readonly name: string;
  readonly description: string;
  readonly decoder: InstructionDecoder;
  /** Structures whose layout may change: the user says that no object of them outlives the change. */
  readonly acceptedTypes: readonly string[];
  readonly digest: Digest;
  readonly createdAt: string;
  readonly declarations?: PatchDeclarations;
  readonly onEvent: (event: BuildEvent) => void;
}

export interface MadePatch {
  readonly bytes: Uint8Array;
  readonly manifest: PatchManifest;
}

/** What is compiled for one object: the program, the kernel itself, a module. */
export interface PatchSource {
  readonly target: TargetModel;
  readonly pairs: readonly CompiledPair[];
}

/**
 * Compares, proves and selects; writes the patch file. All refusals of one kind are listed together. Of a kernel the first source is
 * the kernel itself, also when nothing of it changes: modules refer to it.
 */
export function makePatch(sources: readonly PatchSource[], options: MakeOptions): MadePatch {
  const content = new PatchContent(options);
  for (const source of sources) content.add(source);
  const bytes = content.write();
  return { bytes, manifest: content.manifest };
}

/** What goes into one object of a patch. */
interface ObjectContent {
  readonly target: TargetModel;
  readonly functions: PatchFunction[];
  readonly callbacks: { [kind in keyof PatchCallbacks]: string };
}

class PatchContent {
  readonly #options: MakeOptions;
  readonly #objects: ObjectContent[] = [];
  readonly #notes: string[] = [];
  readonly #newFunctions: string[] = [];
  readonly #newData: { name: string; sizeBytes: number }[] = [];
  readonly #targetSymbols = new Map<string, PatchSymbolAddress & { readonly object: string }>();
  readonly #sections: PatchSection[] = [];
  readonly #symbols: PatchSymbol[] = [];
  readonly #takenNames = new Set<string>();
  readonly #states: PatchSystemState[] = [];
  /** Compiled files so far. */
  #files = 0;

  constructor(options: MakeOptions) {
    this.#options = options;
  }

  add({ target, pairs }: PatchSource): void {
    const object: ObjectContent = { target, functions: [], callbacks: {} };
    this.#objects.push(object);
    const firstFile = this.#files;
    this.#files += pairs.length;
    const firstSection = this.#sections.length;
    /** New symbols that several files share, with their places in the patch's symbols. */
    const globals = new Map<string, number>();
    const proven = proveAll(pairs, target, this.#options, this.#notes);
    const shared = new Set(proven.flatMap(({ newGlobals }) => newGlobals.map(({ name }) => name)));
    for (const pair of proven) this.#addPair(pair, firstFile + pair.index, object, shared, globals);
    for (let index = firstSection; index < this.#sections.length; index++) {
      const section = this.#sections[index] as PatchSection;
      this.#sections[index] = joinFiles(section, this.#symbols, globals);
    }
  }

  #addPair(
    { pair, comparison, changedFunctions, newGlobals, declarations, find, proven }: ProvenPair,
    number: number,
    { target, functions, callbacks }: ObjectContent,
    shared: ReadonlySet<string>,
    globals: Map<string, number>,
  ): void {
    const file = nameOfFile(pair);
    const [sections, symbols, takenNames] = [this.#sections, this.#symbols, this.#takenNames];
    this.#notes.push(
      `${file}: ${counted(proven, 'function')} of the unpatched build ${proven === 1 ? 'is' : 'are'} the target's`,
    );
    const roots = [
      ...changedFunctions.map((p) => p.patched),
      ...newGlobals,
      ...declarations.callbacks.values(),
      ...declarations.states.map((state) => state.variable),
    ];
    const selection = selectPatch(pair.patched, comparison, roots, target, find, `${number}.`, shared);
    const [sectionBase, symbolBase] = [sections.length, symbols.length];
    for (const section of selection.sections) {
      const relocations = section.relocations.map((r) => ({ ...r, symbolIndex: r.symbolIndex + symbolBase }));
      sections.push({ ...section, relocations });
    }
    // Two files may each define a static function of one name; a patch keeps their new versions apart.
    const ownNames = new Set(selection.symbols.flatMap((s) => (s.kind === 'defined' ? [s.name] : [])));
    const inPatch = (name: string) => (takenNames.has(name) ? `${name}.${number}.livegraft` : name);
    for (const symbol of selection.symbols) {
      symbols.push(
        symbol.kind === 'defined'
          ? { ...symbol, name: inPatch(symbol.name), section: symbol.section + sectionBase }
          : symbol,
      );
    }
    for (const { name } of newGlobals) {
      const at = selection.symbols.findIndex((symbol) => symbol.kind === 'defined' && symbol.name === name);
      if (at >= 0) globals.set(name, symbolBase + at);
    }
    for (const symbol of selection.targetSymbols)
      this.#targetSymbols.set(`${symbol.object} ${symbol.kind} ${symbol.name},${symbol.sympos}`, symbol);
    this.#newFunctions.push(...selection.newFunctions);
    this.#newData.push(...selection.newData);
    for (const change of changedFunctions) {
      const described = describeFunction(change, pair, target, find, this.#options);
      const { newSymbol, newParts } = described;
      functions.push({ ...described, newSymbol: inPatch(newSymbol), newParts: newParts.map(inPatch) });
      if (change.original.name === 'main')
        this.#notes.push('main changes: it never leaves the stack, so the transition can not complete');
    }
    for (const [kind, { name }] of declarations.callbacks) {
      if (callbacks[kind] !== undefined) throw declaredTwice(`a ${kind} callback`, `again in ${file}`);
      callbacks[kind] = inPatch(name);
    }
    for (const { id, version, variable } of declarations.states) {
      if (this.#states.some((state) => state.id === id))
        throw declaredTwice(`state ${id}`, `again in ${file}`);
      this.#states.push({ id, version, symbol: inPatch(variable.name) });
    }
    for (const name of ownNames) takenNames.add(name);
    this.#notes.push(...notesOn(file, pair, comparison, target));
  }

  write(): Uint8Array {
    const [first] = this.#objects;
    const { digest, onEvent } = this.#options;
    if (first?.target.isKernel === true) {
      const search = addExceptionSearch(this.#sections, this.#symbols, first.target, digest);
      if (search !== undefined) first.functions.push(search);
    }
    const count = this.#objects.reduce((sum, { functions }) => sum + functions.length, 0);
    if (count === 0) {
      throw new LivegraftError(
        'nothing-changed',
        'the two builds have the same code: there is nothing to patch',
        {
          remedy: 'check that the diff touches code that this target is built from',
        },
      );
    }
    for (const { target, functions, callbacks } of this.#objects) {
      if (functions.length > 0 || target === first?.target || Object.keys(callbacks).length === 0) continue;
      throw new LivegraftError(
        'nothing-changed',
        `the diff has callbacks for ${target.objectName}, of which no function changes`,
        { remedy: 'declare them in a file of what changes', details: { object: target.objectName } },
      );
    }
    onEvent({ kind: 'step', step: 'write', detail: `${count} functions` });
    const { manifest } = this;
    return writePatch({ manifest, sections: this.#sections, symbols: this.#symbols }, digest);
  }

  get manifest(): PatchManifest {
    const { name, description, createdAt, digest, declarations } = this.#options;
    const [first] = this.#objects;
    const changed = this.#objects.filter((each) => each === first || each.functions.length > 0);
    return {
      formatVersion: MANIFEST_VERSION,
      name,
      description,
      createdAt,
      tool: 'livegraft 0.1.0',
      architecture: 'x86-64',
      objects: changed.map(({ target, functions, callbacks }) => ({
        name: target.objectName,
        identity: identityOf(target, digest),
        functions,
        symbols: [...this.#targetSymbols.values()]
          .filter(({ object }) => object === target.objectName)
          .map(({ object: _, ...symbol }) => symbol),
        ...(Object.keys(callbacks).length > 0 ? { callbacks } : {}),
      })),
      ...declarations,
      ...(this.#states.length > 0 ? { states: this.#states } : {}),
      newFunctions: this.#newFunctions,
      newData: this.#newData,
      notes: this.#notes,
    };
  }
}

/** What a user should know of a change that is not refused. */
function notesOn(
  file: string,
  { original, patched }: CompiledPair,
  comparison: Comparison,
  target: TargetModel,
): readonly string[] {
  const notes: string[] = [];
  const kept = new Set(comparison.counterpart.values());
  for (const { name, kind, symbol } of original.definitions.values()) {
    if (kind === 'function' && symbol.binding !== c.STB_LOCAL && ![...kept].some((d) => d.name === name))
      notes.push(`${file}: ${name} is gone from the source; it stays in the program, unused by the new code`);
  }
  for (const { name } of comparison.newData) {
    if (original.definitions.get(name)?.kind === 'data')
      notes.push(
        `${file}: the constant ${name} has a new copy; a pointer to the old one that the program keeps leads to the old one`,
      );
  }
  if (original.typeLayouts === undefined || patched.typeLayouts === undefined)
    notes.push(`${file}: without debug information, the layouts of structures were not compared`);
  const isCxx = /\.(cc|cpp|cxx|c\+\+|C)$/.test(file);
  const throws = [...target.elf.dynamicSymbols, ...target.elf.symbols].some((s) =>
    /^(__cxa_throw|_Unwind_Resume)(@|$)/.test(s.name),
  );
  if (isCxx && throws)
    notes.push(`${file}: an exception can not pass through the new versions: it would end the program`);
  return notes;
}

function describeFunction(
  { original, patched }: Pair,
  pair: CompiledPair,
  target: TargetModel,
  find: Find,
  options: MakeOptions,
): PatchFunction {
  const found = find(original);
  if (found === undefined) throw new Error(`${original.name} was proven to be in the target`);
  expectReferable(found, target);
  const range = (symbol: TargetSymbol) => {
    const bytes = target.elf.bytesAt(linkAddress(symbol.address), symbol.sizeBytes) ?? new Uint8Array();
    return {
      name: symbol.name,
      address: hex(symbol.address),
      sizeBytes: symbol.sizeBytes,
      sha256: options.digest(bytes),
    };
  };
  const partsOf = (model: ObjectModel, parent: Definition) =>
    [...model.definitions.values()].filter(
      (d) => d.kind === 'function' && parentOfPart(d.name) === parent.name,
    );
  const oldParts = partsOf(pair.original, original).flatMap((part) => find(part) ?? []);
  const displaced = target.planEntry?.(found);
  for (const part of oldParts) expectNoJumpIntoEntry(found, part, target, options.decoder);
  return {
    name: found.name,
    sympos: found.sympos,
    old: range(found),
    parts: oldParts.filter((part) => part.sizeBytes > 0).map(range),
    ...(displaced && { displaced }),
    newSymbol: patched.name,
    newParts: partsOf(pair.patched, patched)
      .filter((part) => part.symbol.sizeBytes > 0)
      .map((part) => part.name),
  };
}

/** Where a redirect can lie: behind an endbr64, a jump of five bytes. */
const ENTRY_BYTES = 4 + 5;

/** A split-off part that jumps back into the first bytes of its function would run into the middle of a redirect. */
function expectNoJumpIntoEntry(
  { name, address }: TargetSymbol,
  part: TargetSymbol,
  target: TargetModel,
  decoder: InstructionDecoder,
): void {
  const code = target.elf.bytesAt(linkAddress(part.address), part.sizeBytes) ?? new Uint8Array();
  for (let offset = 0; offset < code.length; ) {
    const instruction = decoder.decode(code, offset, part.address + offset);
    if (instruction === undefined) return;
    const to = instruction.target;
    if (instruction.flow !== 'call' && to !== undefined && to > address && to < address + ENTRY_BYTES) {
      throw new LivegraftError(
        'not-redirectable',
        `${part.name} jumps to offset ${to - address} of ${name}, where a redirect would have to lie`,
        { remedy: 'leave it out of the patch, or patch its callers instead', details: { function: name } },
      );
    }
    offset += instruction.lengthBytes;
  }
}

function identityOf(target: TargetModel, digest: Digest): PatchManifest['objects'][number]['identity'] {
  const { elf } = target;
  if (elf.buildId !== undefined) return { kind: 'buildId', hex: elf.buildId };
  const segments = elf.segments.filter((s) => s.type === c.PT_LOAD && (s.flags & c.PF_X) !== 0);
  const size = segments.reduce((sum, s) => sum + s.fileSizeBytes, 0);
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const segment of segments) {
    bytes.set(elf.bytes.subarray(segment.offset, segment.offset + segment.fileSizeBytes), at);
    at += segment.fileSizeBytes;
  }
  return { kind: 'textHash', sha256: digest(bytes) };
}

/** Leads what one file leaves open to what another one of the same object defines. */
function joinFiles(
  section: PatchSection,
  symbols: readonly PatchSymbol[],
  globals: ReadonlyMap<string, number>,
): PatchSection {
  const join = (symbolIndex: number): number => {
    const symbol = symbols[symbolIndex];
    const isOpen = symbol?.kind === 'external' && symbol.object === '*';
    return (isOpen ? globals.get(symbol.name) : undefined) ?? symbolIndex;
  };
  return {
    ...section,
    relocations: section.relocations.map((r) => ({ ...r, symbolIndex: join(r.symbolIndex) })),
  };
}
