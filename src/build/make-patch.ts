import type { InstructionDecoder } from '../arch/architecture.js';
import { linkAddress } from '../base/brand.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import type { PatchSection, PatchSymbol } from '../patch/content.js';
import { type Digest, writePatch } from '../patch/file.js';
import {
  MANIFEST_VERSION,
  type PatchFunction,
  type PatchManifest,
  type PatchSymbolAddress,
} from '../patch/manifest.js';
import { type Comparison, compareObjects, type Pair } from './compare.js';
import type { CompiledPair } from './compiled-pair.js';
import type { BuildEvent } from './events.js';
import { type Definition, type ObjectModel, parentOfPart } from './object-model.js';
import { findCodeDifference } from './proof.js';
import { refuseUnsafe } from './refusals.js';
import { selectPatch } from './select.js';
import type { TargetModel, TargetSymbol } from './target-model.js';

export interface MakeOptions {
  readonly name: string;
  readonly description: string;
  readonly decoder: InstructionDecoder;
  readonly digest: Digest;
  readonly createdAt: string;
  readonly onEvent: (event: BuildEvent) => void;
}

export interface MadePatch {
  readonly bytes: Uint8Array;
  readonly manifest: PatchManifest;
}

/** Compares, proves and selects; writes the patch file. All refusals of one kind are listed together. */
export function makePatch(
  pairs: readonly CompiledPair[],
  target: TargetModel,
  options: MakeOptions,
): MadePatch {
  const functions: PatchFunction[] = [];
  const notes: string[] = [];
  const newFunctions: string[] = [];
  const newData: { name: string; sizeBytes: number }[] = [];
  const targetSymbols = new Map<string, PatchSymbolAddress>();
  const sections: PatchSection[] = [];
  const symbols: PatchSymbol[] = [];
  const takenNames = new Set<string>();
  for (const { pair, comparison, changedFunctions, find, proven, index } of proveAll(
    pairs,
    target,
    options,
    notes,
  )) {
    const file = nameOfFile(pair);
    notes.push(`${file}: ${proven} functions of the unpatched build are the target's`);
    const roots = changedFunctions.map((p) => p.patched);
    const selection = selectPatch(pair.patched, comparison, roots, target, find, `${index}.`);
    const [sectionBase, symbolBase] = [sections.length, symbols.length];
    for (const section of selection.sections) {
      const relocations = section.relocations.map((r) => ({ ...r, symbolIndex: r.symbolIndex + symbolBase }));
      sections.push({ ...section, relocations });
    }
    // Two files may each define a static function of one name; a patch keeps their new versions apart.
    const ownNames = new Set(selection.symbols.flatMap((s) => (s.kind === 'defined' ? [s.name] : [])));
    const inPatch = (name: string) => (takenNames.has(name) ? `${name}.${index}.livegraft` : name);
    for (const symbol of selection.symbols) {
      symbols.push(
        symbol.kind === 'defined'
          ? { ...symbol, name: inPatch(symbol.name), section: symbol.section + sectionBase }
          : symbol,
      );
    }
    for (const symbol of selection.targetSymbols)
      targetSymbols.set(`${symbol.kind} ${symbol.name},${symbol.sympos}`, symbol);
    newFunctions.push(...selection.newFunctions);
    newData.push(...selection.newData);
    for (const change of changedFunctions) {
      const described = describeFunction(change, pair, target, find, options);
      const { newSymbol, newParts } = described;
      functions.push({ ...described, newSymbol: inPatch(newSymbol), newParts: newParts.map(inPatch) });
      if (change.original.name === 'main')
        notes.push('main changes: it never leaves the stack, so the transition can not complete');
    }
    for (const name of ownNames) takenNames.add(name);
    notes.push(...notesOnRemovals(file, pair, comparison));
  }
  if (functions.length === 0) {
    throw new LivegraftError(
      'nothing-changed',
      'the two builds have the same code: there is nothing to patch',
      {
        remedy: 'check that the diff touches code that this target is built from',
      },
    );
  }
  const manifest: PatchManifest = {
    formatVersion: MANIFEST_VERSION,
    name: options.name,
    description: options.description,
    createdAt: options.createdAt,
    tool: 'livegraft 0.1.0',
    architecture: 'x86-64',
    objects: [
      {
        name: target.objectName,
        identity: identityOf(target, options.digest),
        functions,
        symbols: [...targetSymbols.values()],
      },
    ],
    newFunctions,
    newData,
    notes,
  };
  options.onEvent({ kind: 'step', step: 'write', detail: `${functions.length} functions` });
  return { bytes: writePatch({ manifest, sections, symbols }, options.digest), manifest };
}

interface ProvenPair {
  readonly pair: CompiledPair;
  readonly index: number;
  readonly comparison: Comparison;
  /** Those that no earlier pair has: an inline function of a header is compiled with each file that uses it. */
  readonly changedFunctions: readonly Pair[];
  readonly find: Find;
  readonly proven: number;
}

/**
 * Compares all pairs and holds those that changed against the target. A build may also compile files that the target
 * is not made of, or one file twice, for a program and for a library: what the target does not hold is left out, as
 * long as something is left.
 */
function proveAll(
  pairs: readonly CompiledPair[],
  target: TargetModel,
  options: MakeOptions,
  notes: string[],
): readonly ProvenPair[] {
  const proven: ProvenPair[] = [];
  const failed: {
    readonly file: string;
    readonly names: readonly string[];
    readonly error: LivegraftError;
  }[] = [];
  const claimed = new Set<number>();
  pairs.forEach((pair, index) => {
    const comparison = compareObjects(pair.original, pair.patched);
    const file = nameOfFile(pair);
    options.onEvent({
      kind: 'step',
      step: 'compare',
      detail: `${file}: ${comparison.changedFunctions.length} changed, ${comparison.newFunctions.length} new functions`,
    });
    const find = finder(options.decoder, pair.original, target);
    const isPart = isPartOfTarget(pair.original, target);
    if (isPart) refuseUnsafe(pair, comparison);
    if (comparison.changedFunctions.length === 0) return;
    const names = comparison.changedFunctions.map((change) => change.original.name);
    if (!isPart) {
      const error = new LivegraftError(
        'object-not-in-target',
        `${file} changes (${names.join(', ')}), but ${target.objectName} has none of its functions`,
        {
          remedy: 'give the executable or library that the changed file is linked into as --target',
          details: { file, target: target.elf.source },
        },
      );
      failed.push({ file, names, error });
      return;
    }
    options.onEvent({ kind: 'step', step: 'prove', detail: file });
    try {
      const count = proveUnpatched(options.decoder, pair.original, comparison.changedFunctions, target, find);
      const changedFunctions = comparison.changedFunctions.filter((change) => {
        const address = find(change.original)?.address ?? 0;
        const isNew = !claimed.has(address);
        claimed.add(address);
        return isNew;
      });
      if (changedFunctions.length > 0)
        proven.push({ pair, index, comparison, changedFunctions, find, proven: count });
    } catch (error) {
      if (!(error instanceof LivegraftError)) throw error;
      failed.push({ file, names, error });
    }
  });
  const provenFiles = new Set(proven.map(({ pair }) => nameOfFile(pair)));
  for (const { file, error } of failed) {
    const isElsewhere = error.code === 'object-not-in-target' ? proven.length > 0 : provenFiles.has(file);
    if (!isElsewhere) throw error;
    notes.push(`left out a compilation of ${file}, which is not in ${target.objectName}`);
  }
  return proven;
}

function nameOfFile(pair: CompiledPair): string {
  return pair.original.fileName ?? pair.original.source;
}

/** Whether the target was linked from the object's source file, and has any function of it by name. */
function isPartOfTarget(original: ObjectModel, target: TargetModel): boolean {
  if (!target.mayHaveFile(original.fileName)) return false;
  return [...original.definitions.values()].some((d) => {
    const isLocal = d.symbol.binding === c.STB_LOCAL;
    return d.kind === 'function' && target.candidates(d.name, isLocal, original.fileName, true).length > 0;
  });
}

function notesOnRemovals(file: string, pair: CompiledPair, comparison: Comparison): readonly string[] {
  const kept = new Set(comparison.counterpart.values());
  const removed = [...pair.original.definitions.values()].filter(
    (d) => d.kind === 'function' && !kept.has(d) && d.symbol.binding !== c.STB_LOCAL,
  );
  return removed.map(
    ({ name }) => `${file}: ${name} is gone from the source; it stays in the program, unused by the new code`,
  );
}

/** Finds what a definition of the original object is in the target; several of one name are told apart by their code. */
function finder(decoder: InstructionDecoder, original: ObjectModel, target: TargetModel) {
  const known = new Map<Definition, TargetSymbol | undefined>();
  return (definition: Definition): TargetSymbol | undefined => {
    if (known.has(definition)) return known.get(definition);
    const isLocal = definition.symbol.binding === c.STB_LOCAL;
    const isFunction = definition.kind === 'function';
    let candidates = target.candidates(definition.name, isLocal, original.fileName, isFunction);
    if (candidates.length > 1)
      candidates = candidates.filter((s) => s.sizeBytes === definition.symbol.sizeBytes || isFunction);
    if (candidates.length > 1 && isFunction) {
      candidates = candidates.filter(
        (s) =>
          findCodeDifference(decoder, original, definition, target, s.address, s.sizeBytes) === undefined,
      );
    }
    if (candidates.length > 1 && new Set(candidates.map((s) => s.address)).size > 1) {
      throw new LivegraftError(
        'symbol-ambiguous',
        `${target.objectName} has ${candidates.length} symbols ${definition.name} that ${original.fileName ?? original.source} could mean`,
        {
          remedy: 'rename one of them, or patch the callers',
          details: { symbol: definition.name, count: candidates.length },
        },
      );
    }
    known.set(definition, candidates[0]);
    return candidates[0];
  };
}

type Find = ReturnType<typeof finder>;

/** Every function of the object that the target has must be the same code; returns how many there were. */
function proveUnpatched(
  decoder: InstructionDecoder,
  original: ObjectModel,
  changed: readonly Pair[],
  target: TargetModel,
  find: Find,
): number {
  let proven = 0;
  const isChanged = new Set(changed.map((pair) => pair.original));
  const definitions = [...original.definitions.values()].filter(
    (d) => d.kind === 'function' && d.symbol.sizeBytes > 0,
  );
  // The changed ones first: a difference there is what the reader must hear of.
  definitions.sort((a, b) => Number(isChanged.has(b)) - Number(isChanged.has(a)));
  for (const definition of definitions) {
    const found = find(definition);
    if (found === undefined) {
      if (!isChanged.has(definition)) continue;
      throw new LivegraftError(
        'function-not-in-target',
        `${definition.name} changes, but ${target.objectName} has no such function`,
        {
          remedy:
            'the target may have been built from other sources or with other flags, or the linker left it out',
          details: { function: definition.name },
        },
      );
    }
    const difference = findCodeDifference(
      decoder,
      original,
      definition,
      target,
      found.address,
      found.sizeBytes,
    );
    if (difference === undefined) {
      proven++;
      continue;
    }
    const { offset, compiled, inTarget } = difference;
    throw new LivegraftError(
      'target-differs',
      `the unpatched build is not the code in ${target.elf.source}: ${definition.name} differs at offset ${offset} (built ${compiled}, target ${inTarget})`,
      {
        remedy: 'build with the compiler, flags and sources that the target was built with',
        details: { function: definition.name, offset, compiled, inTarget },
      },
    );
  }
  return proven;
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
  const range = (symbol: TargetSymbol) => {
    const bytes = target.elf.bytesAt(linkAddress(symbol.address), symbol.sizeBytes) ?? new Uint8Array();
    return {
      name: symbol.name,
      address: `0x${symbol.address.toString(16)}`,
      sizeBytes: symbol.sizeBytes,
      sha256: options.digest(bytes),
    };
  };
  const partsOf = (model: ObjectModel, parent: Definition) =>
    [...model.definitions.values()].filter(
      (d) => d.kind === 'function' && parentOfPart(d.name) === parent.name,
    );
  const oldParts = partsOf(pair.original, original).flatMap((part) => find(part) ?? []);
  return {
    name: found.name,
    sympos: found.sympos,
    old: range(found),
    parts: oldParts.filter((part) => part.sizeBytes > 0).map(range),
    newSymbol: patched.name,
    newParts: partsOf(pair.patched, patched)
      .filter((part) => part.symbol.sizeBytes > 0)
      .map((part) => part.name),
  };
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
