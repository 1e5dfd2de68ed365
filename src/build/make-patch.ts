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
  pairs.forEach((pair, index) => {
    const comparison = compareObjects(pair.original, pair.patched);
    const { changedFunctions } = comparison;
    options.onEvent({
      kind: 'step',
      step: 'compare',
      detail: `${pair.original.fileName ?? pair.original.source}: ${changedFunctions.length} changed, ${comparison.newFunctions.length} new functions`,
    });
    refuseUnsafe(pair, comparison);
    if (changedFunctions.length === 0) return;
    const find = finder(options.decoder, pair.original, target);
    options.onEvent({ kind: 'step', step: 'prove', detail: pair.original.fileName ?? pair.original.source });
    const proven = proveUnpatched(options.decoder, pair.original, changedFunctions, target, find);
    notes.push(
      `${pair.original.fileName ?? '?'}: ${proven} functions of the unpatched build are the target's`,
    );
    const roots = changedFunctions.map((p) => p.patched);
    const selection = selectPatch(pair.patched, comparison, roots, target, find, `${index}.`);
    const [sectionBase, symbolBase] = [sections.length, symbols.length];
    for (const section of selection.sections) {
      const relocations = section.relocations.map((r) => ({ ...r, symbolIndex: r.symbolIndex + symbolBase }));
      sections.push({ ...section, relocations });
    }
    for (const symbol of selection.symbols) {
      symbols.push(symbol.kind === 'defined' ? { ...symbol, section: symbol.section + sectionBase } : symbol);
    }
    for (const symbol of selection.targetSymbols)
      targetSymbols.set(`${symbol.kind} ${symbol.name},${symbol.sympos}`, symbol);
    newFunctions.push(...selection.newFunctions);
    newData.push(...selection.newData);
    for (const change of changedFunctions)
      functions.push(describeFunction(change, comparison, pair, target, find, options));
    for (const change of changedFunctions) {
      if (change.original.name === 'main')
        notes.push('main changes: it never leaves the stack, so the transition can not complete');
    }
  });
  if (functions.length === 0) {
    throw new LivegraftError(
      'nothing-changed',
      'the two builds have the same code: there is nothing to patch',
      {
        remedy: 'check that the diff touches code that this target is built from',
      },
    );
  }
  expectUniqueNames(functions);
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
  comparison: Comparison,
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
      .filter((part) => part.symbol.sizeBytes > 0 && comparison !== undefined)
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

/** Two files may each define a static function of one name; their new versions need different symbols. */
function expectUniqueNames(functions: readonly PatchFunction[]): void {
  const seen = new Set<string>();
  for (const { newSymbol } of functions) {
    if (seen.has(newSymbol)) {
      throw new LivegraftError(
        'name-clash',
        `the diff changes two functions named ${newSymbol}, in different files`,
        {
          remedy: 'make one patch for each file',
          details: { function: newSymbol },
        },
      );
    }
    seen.add(newSymbol);
  }
}
