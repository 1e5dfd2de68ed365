import { LivegraftError } from '../base/errors.js';
import type { Patch, PatchSection, PatchSymbol } from './content.js';
import type { PatchManifest, PatchObject } from './manifest.js';

/**
 * One patch of several, each for an object of its own: their functions become visible to a thread together. Names that two of
 * them define are told apart. Throws `combine-conflict` when two are for one object, or declare what only one can.
 */
export function combinePatches(
  patches: readonly Patch[],
  about: Pick<PatchManifest, 'name' | 'createdAt' | 'tool'>,
): Omit<Patch, 'id'> {
  const manifests = patches.map(({ manifest }) => manifest);
  // A patch of a kernel's module names the kernel, too, by its build.
  const changed = manifests.map((manifest) => manifest.objects.filter(isChanged));
  const objects = changed.flatMap((each) => each.map(({ name }) => name));
  const twice = objects.find((name, index) => objects.indexOf(name) < index);
  if (twice !== undefined) throw conflict(`two of the patches are for ${twice}`);
  const barriers = new Set(manifests.flatMap(({ barrier }) => barrier ?? []));
  if (barriers.size > 1) throw conflict(`they declare different barriers: ${[...barriers].join(', ')}`);
  const states = manifests.flatMap((manifest) => manifest.states ?? []);
  if (new Set(states.map(({ id }) => id)).size < states.length)
    throw conflict('two of them declare a system state of one number');

  const sections: PatchSection[] = [];
  const symbols: PatchSymbol[] = [];
  const combined = new Map<string, PatchObject>();
  const combinedStates: typeof states = [];
  const taken = new Set<string>();
  for (const { manifest, ...patch } of patches) {
    const [sectionBase, symbolBase] = [sections.length, symbols.length];
    const own = new Set(patch.symbols.flatMap((symbol) => (symbol.kind === 'defined' ? [symbol.name] : [])));
    const renamed = (name: string) => (taken.has(name) ? freeName(name, taken, own) : name);
    const names = new Map([...own].map((name) => [name, renamed(name)]));
    const nameOf = (name: string) => names.get(name) ?? name;
    for (const section of patch.sections) {
      const relocations = section.relocations.map((r) => ({ ...r, symbolIndex: r.symbolIndex + symbolBase }));
      sections.push({ ...section, relocations });
    }
    for (const symbol of patch.symbols) {
      if (symbol.kind === 'external') symbols.push(symbol);
      else {
        const section = symbol.section < 0 ? symbol.section : symbol.section + sectionBase;
        symbols.push({ ...symbol, name: nameOf(symbol.name), section });
      }
    }
    for (const object of manifest.objects) {
      const known = combined.get(object.name);
      combined.set(object.name, mergeObjects(known, renameIn(object, nameOf)));
    }
    combinedStates.push(
      ...(manifest.states ?? []).map((state) => ({ ...state, symbol: nameOf(state.symbol) })),
    );
    for (const name of names.values()) taken.add(name);
  }
  const [barrier] = barriers;
  return {
    manifest: {
      formatVersion: (manifests[0] as PatchManifest).formatVersion,
      architecture: (manifests[0] as PatchManifest).architecture,
      ...about,
      description: manifests
        .map(({ description }) => description)
        .filter((text) => text !== '')
        .join('\n'),
      objects: [...combined.values()],
      ...(manifests.some(({ replace }) => replace === true) ? { replace: true } : {}),
      ...(barrier === undefined ? {} : { barrier }),
      ...(combinedStates.length === 0 ? {} : { states: combinedStates }),
      newFunctions: manifests.flatMap(({ newFunctions }) => newFunctions),
      newData: manifests.flatMap(({ newData }) => newData),
      notes: manifests.flatMap(({ notes }) => notes),
    },
    sections,
    symbols,
  };
}

function isChanged({ functions, callbacks }: PatchObject): boolean {
  return functions.length > 0 || callbacks !== undefined;
}

/** The same object in two patches, of which one changes it at most. */
function mergeObjects(first: PatchObject | undefined, second: PatchObject): PatchObject {
  if (first === undefined) return second;
  if (JSON.stringify(first.identity) !== JSON.stringify(second.identity))
    throw conflict(`two of the patches are for different builds of ${second.name}`);
  const known = new Set(first.symbols.map(({ name, sympos }) => `${name},${sympos}`));
  const added = second.symbols.filter(({ name, sympos }) => !known.has(`${name},${sympos}`));
  return { ...(isChanged(second) ? second : first), symbols: [...first.symbols, ...added] };
}

function renameIn(object: PatchObject, nameOf: (name: string) => string): PatchObject {
  const functions = object.functions.map((fn) => ({
    ...fn,
    newSymbol: nameOf(fn.newSymbol),
    newParts: fn.newParts.map(nameOf),
  }));
  if (object.callbacks === undefined) return { ...object, functions };
  const callbacks = Object.fromEntries(
    Object.entries(object.callbacks).map(([kind, name]) => [kind, name === undefined ? name : nameOf(name)]),
  );
  return { ...object, functions, callbacks };
}

/** As the builder tells apart what two files of one patch define. */
function freeName(name: string, ...taken: readonly ReadonlySet<string>[]): string {
  for (let i = 1; ; i++) {
    const candidate = `${name}.${i}.combined`;
    if (taken.every((names) => !names.has(candidate))) return candidate;
  }
}

function conflict(why: string): LivegraftError {
  return new LivegraftError('combine-conflict', `these patches can't be combined: ${why}`, {
    remedy: 'give patches for different objects, built to be applied together',
    details: { why },
  });
}
