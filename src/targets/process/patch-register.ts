import { GATE } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import { type ObjectTransition, settlePart } from '../../engine/objects.js';
import type { Patch } from '../../patch/content.js';
import type { PatchObject } from '../../patch/manifest.js';
import { badBarrierError } from '../barrier-check.js';
import { type EntryWrite, entryState } from './entry-writer.js';
import type { LoadedModule } from './modules.js';
import {
  expectOldCode,
  expectReplaceable,
  findPatchedModule,
  type LoadOptions,
  loadPart,
  notLoadedError,
} from './patch-loader.js';
import {
  asInstalled,
  findLeft,
  isOtherCopy,
  type LeftObject,
  partsOf,
  pendingObjects,
  restrictTo,
  withoutLeft,
  withoutParts,
  withParts,
} from './patch-objects.js';
import type { ProcessSession } from './process-session.js';
import type {
  MemoryRange,
  RegisteredPart,
  RegisteredPatch,
  Registry,
  RetiredImage,
  SlotArea,
} from './registry.js';
import { writeEntriesStopped } from './stopped-entries.js';
import { retire } from './trampolines.js';

/** Brings patches, and their objects as they come, into a process and its registry, and takes out what has gone. */

/** An object of a patch that is there. */
interface FoundObject {
  readonly object: PatchObject;
  readonly module: LoadedModule;
}

/**
 * The objects of a patch that are loaded, their code checked. Without `late` at least one must be: a patch for none of a
 * process's files is more likely meant for another process than for a library to come.
 */
export function findObjects(session: ProcessSession, patch: Patch, late: boolean): readonly FoundObject[] {
  const { objects } = patch.manifest;
  const found = findAmong(session, objects);
  if (found.length === 0 && !late) throw notLoadedError(session, objects[0] as PatchObject);
  return found;
}

function findAmong(session: ProcessSession, objects: readonly PatchObject[]): readonly FoundObject[] {
  return objects.flatMap((object) => {
    const module = findPatchedModule(session, object);
    if (module === undefined) return [];
    expectOldCode(session, object, module);
    return [{ object, module }];
  });
}

export interface PrepareOptions {
  readonly barrier: string | undefined;
  readonly replace: boolean;
  readonly late: boolean;
  readonly path: string;
}

/** Maps, fills in and registers a patch. Its entries are untouched yet; a failure leaves nothing behind. */
export function prepare(
  session: ProcessSession,
  patch: Patch,
  kind: SlotArea['kind'],
  options: PrepareOptions,
): RegisteredPatch {
  const { manifest } = patch;
  try {
    const { registry } = session.expectRegistry(kind);
    const replaces = (options.replace || manifest.replace === true) && registry.patches.length > 0;
    if (replaces) expectReplaceable(registry, manifest.objects);
    const barrier = options.barrier ?? manifest.barrier;
    const found = findObjects(session, patch, options.late);
    const parts = loadParts(session, patch, found, registry, { barrier, replaces });
    const registered = withParts(
      {
        id: patch.id,
        name: manifest.name,
        appliedAt: new Date().toISOString(),
        state: 'applying',
        forced: false,
        path: options.path,
        objects: manifest.objects.map(({ name, identity, functions }) => ({
          name,
          identity,
          functions: functions.map((fn) => fn.name),
        })),
        functions: [],
        ...(barrier === undefined ? {} : { barrierName: barrier }),
        ...(replaces ? { replaces } : {}),
      },
      parts,
    );
    writeRegistry(session, { ...registry, patches: [...registry.patches, registered] });
    return registered;
  } catch (error) {
    session.cleanUpAfterFailure();
    throw error;
  }
}

/**
 * Maps and registers the parts of a patch for objects that have come since it was applied. Their entries are untouched
 * yet. Returns their names: none when none has come.
 */
export function prepareArrived(
  session: ProcessSession,
  patch: Patch,
  registered: RegisteredPatch,
  wanted: readonly string[] = pendingObjects(registered).map(({ name }) => name),
): readonly string[] {
  const objects = patch.manifest.objects.filter(({ name }) => wanted.includes(name));
  const found = findAmong(session, objects);
  if (found.length === 0) return [];
  try {
    const kind = session.registry?.slots.kind ?? 'gsBase';
    const { registry } = session.expectRegistry(kind);
    // Versions are stacked in the order of their patches: later ones count as not there.
    const below = registry.patches.slice(
      0,
      registry.patches.findIndex(({ id }) => id === patch.id),
    );
    // The barrier is a function of one object: of what comes later only while none had it.
    const { barrierName: name } = registered;
    const isToCome = name !== undefined && registered.barrier === undefined;
    const barrier = isToCome && found.some(({ module }) => has(module, name)) ? name : undefined;
    const options = { barrier, replaces: registered.replaces === true };
    const parts = loadParts(session, patch, found, { ...registry, patches: below }, options);
    writeRegistry(session, {
      ...registry,
      patches: registry.patches.map((each) => (each.id === patch.id ? withParts(each, parts) : each)),
    });
    return found.map(({ object }) => object.name);
  } catch (error) {
    session.cleanUpAfterFailure();
    throw error;
  }
}

/** The barrier, a function of one object, is looked for in all; only when none has it, that is an error. */
function loadParts(
  session: ProcessSession,
  patch: Patch,
  found: readonly FoundObject[],
  registry: Registry,
  { barrier, replaces }: LoadOptions,
) {
  const at =
    barrier === undefined ? undefined : (found.find(({ module }) => has(module, barrier)) ?? found[0]);
  if (at !== undefined && barrier !== undefined) expectNotCalled(patch, at, barrier);
  return found.map((one) => {
    if (!replaces) expectNoneSkipped(registry, one.object);
    session.refreshMappings();
    return loadPart(session, patch, one.object, one.module, registry, {
      barrier: one === at ? barrier : undefined,
      replaces,
    });
  });
}

/**
 * By name, of the whole patch: the part for an object that is yet to come may call the barrier, too. Of the part that it belongs to
 * {@link loadPart} knows more.
 */
function expectNotCalled({ symbols }: Patch, { object, module }: FoundObject, barrier: string): void {
  const isExported = module.elf.dynamicSymbols.some(({ name, value }) => name === barrier && value !== 0);
  const isCalled = symbols.some(
    (symbol) =>
      symbol.kind === 'external' &&
      symbol.name === barrier &&
      (symbol.object === object.name || (symbol.object === '*' && isExported)),
  );
  if (isCalled) throw badBarrierError(barrier, 'the code of the patch calls it', 'thread');
}

/** Versions lie on one another in the order of their patches: an older patch can't slip in below later. */
function expectNoneSkipped({ patches }: Registry, { name }: PatchObject): void {
  const older = patches.find((patch) =>
    patch.objects.some((object) => object.name === name && object.part === undefined),
  );
  if (older === undefined) return;
  throw new LivegraftError(
    'older-pending',
    `${name} has been loaded, and patch ${older.name}, which is older, has not been applied to it yet`,
    {
      remedy: `apply ${older.name} again first (${older.path}), which completes it, or revert it`,
      details: { object: name, patch: older.id },
    },
  );
}

function has({ elf }: LoadedModule, name: string): boolean {
  return [...elf.symbols, ...elf.dynamicSymbols].some((symbol) => symbol.name === name && symbol.value !== 0);
}

/** Undoes {@link prepare}, or, for some objects of a patch, {@link prepareArrived}. */
export function unload(session: ProcessSession, id: string, objects: readonly string[] | undefined): void {
  const { registry } = session;
  if (registry === undefined || session.store === undefined) return;
  writeRegistry(session, {
    ...registry,
    patches: registry.patches.flatMap((patch) =>
      patch.id !== id ? [patch] : objects === undefined ? [] : [withoutParts(patch, objects)],
    ),
    transition: undefined,
  });
  session.cleanUpAfterFailure();
}

/**
 * Brings the registry in line with what is there: objects that have gone are pending again, and what a killed run had loaded
 * for an object and never installed is unloaded, behind `giveUp`. Returns what has gone. Threads must be seized.
 */
export function settleObjects(
  session: ProcessSession,
  giveUp: (part: RegisteredPatch) => void,
): readonly LeftObject[] {
  const { registry } = session;
  if (registry === undefined) return [];
  session.refreshModules();
  const left = findLeft(registry, session.memory, session.mappings);
  if (left.length > 0) writeRegistry(session, withoutLeft(registry, left));
  for (const patch of session.registry?.patches ?? []) {
    if (patch.state === 'applying' && registry.transition?.patchId !== patch.id) continue;
    for (const { name, part } of patch.objects)
      if (part !== undefined) settleOne(session, patch, name, part, giveUp);
  }
  return left;
}

function settleOne(
  session: ProcessSession,
  patch: RegisteredPatch,
  object: string,
  part: RegisteredPart,
  giveUp: (part: RegisteredPatch) => void,
): void {
  const { memory } = session;
  const only = restrictTo(patch, [object]);
  if (part.state === 'installed') return;
  const isOpen = part.gate !== undefined && memory.readExactly(part.gate, 1)[0] !== GATE.shut;
  const states = only.functions.map((fn) => entryState(memory, fn));
  const isShut = !states.some(
    (state) => state === 'choosing' || state === 'direct' || (state === 'gated' && isOpen),
  );
  const found = { patch: patch.id, object, isInstalled: false, isShut };
  const change = (to: (p: RegisteredPatch) => RegisteredPatch, retired: readonly RetiredImage[] = []) => {
    const registry = session.registry as Registry;
    const patches = registry.patches.map((p) => (p.id === patch.id ? to(p) : p));
    writeRegistry(session, { ...registry, patches, retired: [...registry.retired, ...retired] });
  };
  switch (settlePart(found, objectTransition(session))) {
    case 'keep':
      return;
    case 'complete':
      writeEntriesStopped(session, only.functions, 'direct');
      change((p) => asInstalled(p, [object]));
      return;
    case 'takeBack': {
      giveUp(only);
      const wasEntered = states.includes('gated');
      if (wasEntered) writeEntriesStopped(session, only.functions, 'below', (write) => gateOf(only, write));
      // A signal may have interrupted a thread in a gate: then its memory is kept until it has left.
      change((p) => withoutParts(p, [object]), wasEntered ? retire(only) : []);
      if (!wasEntered) session.cleanUpAfterFailure();
    }
  }
}

/** The gate and trampoline that the function's entry leads into. */
function gateOf({ functions }: RegisteredPatch, write: EntryWrite): MemoryRange | undefined {
  const trampoline = functions.find(({ name }) => name === write.function)?.redirect.trampoline;
  if (trampoline?.gateAt === undefined) return undefined;
  return {
    address: trampoline.gateAt,
    sizeBytes: trampoline.address + trampoline.sizeBytes - trampoline.gateAt,
  };
}

/** The transition that runs, as far as objects go. While an install is under way, states count once all entries go by them. */
export function objectTransition({ registry, memory }: ProcessSession): ObjectTransition | undefined {
  const { transition } = registry ?? {};
  const patch = registry?.patches.find(({ id }) => id === transition?.patchId);
  if (transition === undefined || patch === undefined) return undefined;
  const { patchId, objects, direction, phase } = transition;
  const { functions } = restrictTo(patch, objects);
  const chooses =
    phase === 'installing' &&
    functions.length > 0 &&
    functions.every((fn) => entryState(memory, fn) === 'choosing');
  return {
    patchId,
    ...(objects === undefined ? {} : { objects }),
    direction,
    phase: chooses ? 'running' : phase,
    ...(patch.replaces === true ? { replaces: true } : {}),
  };
}

/** Of a patch none of whose objects is there: all is done. */
export function recordApplied(session: ProcessSession, id: string): void {
  const { registry } = session;
  if (registry === undefined) throw new Error('no registry');
  const patches = registry.patches.map((patch) =>
    patch.id === id ? { ...patch, state: 'applied' as const } : patch,
  );
  writeRegistry(session, { ...registry, patches });
}

export function writeRegistry(session: ProcessSession, registry: Registry): void {
  if (session.store === undefined) throw new Error('no registry');
  session.registry = registry;
  session.store.write(registry);
}

/** What a patch found of its objects in a process. */
export type ObjectState =
  /** Its functions are replaced, or the transition that does so runs. */
  | 'patched'
  /** So they are in one copy; another one (dlmopen) runs as it is. */
  | 'partly'
  /** It is not loaded. */
  | 'pending'
  /** It came while nobody watched: it runs as it is. */
  | 'unpatched'
  /** What is loaded under its name can't be patched: another build, other code, a second copy. */
  | 'unfit';

/** The state of each object of a patch, as it is now, whatever the registry says. */
export function objectStates(
  session: ProcessSession,
  patch: RegisteredPatch,
): readonly { readonly name: string; readonly state: ObjectState; readonly functions: readonly string[] }[] {
  const gone =
    session.registry === undefined ? [] : findLeft(session.registry, session.memory, session.mappings);
  return patch.objects.map((object) => {
    const { name, functions, part } = object;
    const isHere =
      part !== undefined && !gone.some((one) => one.patch.id === patch.id && one.object === object);
    if (!isHere) return { name, functions, state: stateOfPending(session, object) };
    const isTwice = session.modules.some((module) => isOtherCopy(module, part));
    return { name, functions, state: isTwice ? 'partly' : 'patched' };
  });
}

function stateOfPending(
  session: ProcessSession,
  object: Pick<PatchObject, 'name' | 'identity'>,
): ObjectState {
  try {
    return findPatchedModule(session, object) === undefined ? 'pending' : 'unpatched';
  } catch (error) {
    if (error instanceof LivegraftError) return 'unfit';
    throw error;
  }
}

/** Whether the patch has something in memory at all. */
export function hasParts(patch: RegisteredPatch): boolean {
  return partsOf(patch).length > 0;
}
