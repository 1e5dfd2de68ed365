import type { InstructionDecoder } from '../arch/architecture.js';
import { LivegraftError } from '../base/errors.js';
import * as c from '../elf/constants.js';
import { type Comparison, compareObjects, type Pair } from './compare.js';
import type { CompiledPair } from './compiled-pair.js';
import { type Declarations, hasDeclarations, readDeclarations } from './declarations.js';
import type { BuildEvent } from './events.js';
import { type Definition, type ObjectModel, stableName } from './object-model.js';
import { findCodeDifference } from './proof.js';
import { refuseUnsafe } from './refusals.js';
import type { TargetModel, TargetSymbol } from './target-model.js';

export interface ProvenPair {
  readonly pair: CompiledPair;
  readonly index: number;
  readonly comparison: Comparison;
  /** Those that no earlier pair has: an inline function of a header is compiled with each file that uses it. */
  readonly changedFunctions: readonly Pair[];
  /** New functions and variables that other changed files refer to. */
  readonly newGlobals: readonly Definition[];
  readonly declarations: Declarations;
  readonly find: Find;
  readonly proven: number;
}

/**
 * Compares all pairs and holds those that changed against the target. A build may also compile files that the target
 * is not made of, or one file twice, for a program and for a library: what the target does not hold is left out, as
 * long as something is left.
 */
export function proveAll(
  pairs: readonly CompiledPair[],
  target: TargetModel,
  options: {
    readonly decoder: InstructionDecoder;
    readonly acceptedTypes: readonly string[];
    readonly onEvent: (event: BuildEvent) => void;
  },
  notes: string[],
): readonly ProvenPair[] {
  const proven: ProvenPair[] = [];
  const failed: {
    readonly file: string;
    readonly names: readonly string[];
    readonly error: LivegraftError;
  }[] = [];
  const claimed = new Set<number>();
  const needed = namesNotInTarget(pairs, target);
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
    if (isPart) refuseUnsafe(pair, comparison, options.acceptedTypes, target.isKernel);
    const newGlobals = [...comparison.newFunctions, ...comparison.newData].filter(
      (d) => d.symbol.binding !== c.STB_LOCAL && needed.has(d.name),
    );
    const declarations = readDeclarations(pair.patched);
    const declares = hasDeclarations(declarations);
    if (comparison.changedFunctions.length === 0 && newGlobals.length === 0 && !declares) return;
    const names = comparison.changedFunctions.map((change) => change.original.name);
    if (!isPart) {
      const error = new LivegraftError(
        'object-not-in-target',
        `${file} changes (${names.join(', ')}), but ${target.objectName} has none of its functions`,
        {
          remedy: target.isKernel
            ? 'the kernel is configured without it, or the source is not that of the target'
            : 'give the executable or library that the changed file is linked into as --target',
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
      if (changedFunctions.length > 0 || newGlobals.length > 0 || declares)
        proven.push({
          pair,
          index,
          comparison,
          changedFunctions,
          newGlobals,
          declarations,
          find,
          proven: count,
        });
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

export function nameOfFile(pair: CompiledPair): string {
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

/** What the changed files refer to and the target does not define: new symbols of another changed file, or a library's. */
function namesNotInTarget(pairs: readonly CompiledPair[], target: TargetModel): ReadonlySet<string> {
  const names = new Set<string>();
  for (const { patched } of pairs) {
    for (const { name, sectionIndex } of patched.elf.symbols) {
      if (sectionIndex !== c.SHN_UNDEF || name === '') continue;
      if (!target.symbolsNamed(name).some((s) => !s.isLocal)) names.add(name);
    }
  }
  return names;
}

/** Finds what a definition of the original object is in the target; several of one name are told apart by their code. */
function finder(decoder: InstructionDecoder, original: ObjectModel, target: TargetModel) {
  const known = new Map<Definition, TargetSymbol | undefined>();
  const inProgress = new Set<Definition>();
  const find = (definition: Definition): TargetSymbol | undefined => {
    if (known.has(definition)) return known.get(definition);
    const isLocal = definition.symbol.binding === c.STB_LOCAL;
    const isFunction = definition.kind === 'function';
    let candidates = target.candidates(definition.name, isLocal, original.fileName, isFunction);
    if (target.isKernel && !isFunction && isLocal && stableName(definition.name) !== definition.name) {
      // Numbers shift from build to build: the code tells which is meant.
      const all = target.candidates(definition.name, isLocal, original.fileName, isFunction, true);
      const used = usedCandidates(decoder, original, definition, target, all, find);
      if (used.length === 1) candidates = used;
    }
    // A kernel's symbols have no sizes of their own.
    if (candidates.length > 1 && !isFunction)
      candidates = target.isKernel
        ? usedCandidates(decoder, original, definition, target, candidates, find)
        : candidates.filter((s) => s.sizeBytes === definition.symbol.sizeBytes);
    if (candidates.length > 1 && isFunction) {
      candidates = candidates.filter(
        (s) =>
          findCodeDifference(decoder, original, definition, target, s.address, s.sizeBytes) === undefined,
      );
    }
    if (candidates.length > 1 && isFunction && target.isKernel) {
      candidates = besideNeighbours(original, definition, target, candidates);
      if (candidates.length > 1 && !inProgress.has(definition)) {
        inProgress.add(definition);
        candidates = usedCandidates(decoder, original, definition, target, candidates, find);
      }
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
  return find;
}

/** Several of one name: the one that the target's code uses where the object's code uses this one. */
function usedCandidates(
  decoder: InstructionDecoder,
  original: ObjectModel,
  definition: Definition,
  target: TargetModel,
  candidates: readonly TargetSymbol[],
  find: (definition: Definition) => TargetSymbol | undefined,
): readonly TargetSymbol[] {
  for (const name of original.usersOf(definition)) {
    const user = original.definitions.get(name);
    const found = user?.kind === 'function' ? quietly(() => find(user)) : undefined;
    if (user === undefined || found === undefined) continue;
    const bound = new Map<Definition, number>();
    const { address, sizeBytes } = found;
    if (findCodeDifference(decoder, original, user, target, address, sizeBytes, bound) !== undefined)
      continue;
    const at = bound.get(definition);
    const used = candidates.filter((candidate) => candidate.address === at);
    if (used.length > 0) return used;
  }
  return candidates;
}

/** Undefined also where it can't be told which of several it is. */
function quietly(find: () => TargetSymbol | undefined): TargetSymbol | undefined {
  try {
    return find();
  } catch (error) {
    if (error instanceof LivegraftError && error.code === 'symbol-ambiguous') return undefined;
    throw error;
  }
}

/**
 * Functions of one name and one code: the one that lies directly before or behind a function that it lies before or
 * behind in the object, since the linker leaves the code of a file together, in its order.
 */
function besideNeighbours(
  original: ObjectModel,
  definition: Definition,
  target: TargetModel,
  candidates: readonly TargetSymbol[],
): readonly TargetSymbol[] {
  const order = original.functionsInOrder(definition);
  const index = order.indexOf(definition);
  const only = (neighbour: Definition): TargetSymbol | undefined => {
    const isLocal = neighbour.symbol.binding === c.STB_LOCAL;
    const all = target.candidates(neighbour.name, isLocal, original.fileName, true);
    return all.length === 1 ? all[0] : undefined;
  };
  for (const step of [-1, 1]) {
    let left: readonly TargetSymbol[] = candidates;
    for (let i = index + step; i >= 0 && i < order.length && left.length > 0; i += step) {
      const neighbour = order[i] as Definition;
      const unique = only(neighbour);
      const isBeside = (a: number) =>
        unique === undefined
          ? target.symbolBeside(a, step)?.name === neighbour.name
          : target.symbolBeside(a, step)?.address === unique.address;
      if (i === index + step) left = left.filter((candidate) => isBeside(candidate.address));
      if (unique !== undefined) break;
    }
    if (left.length === 1) return left;
  }
  return candidates;
}

export type Find = ReturnType<typeof finder>;

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
    const found = isChanged.has(definition) ? find(definition) : quietly(() => find(definition));
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
    // Another file's function of that name took its place.
    if (definition.symbol.binding === c.STB_WEAK && !isChanged.has(definition)) continue;
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
