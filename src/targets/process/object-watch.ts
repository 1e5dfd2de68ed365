import { LivegraftError, ParseError } from '../../base/errors.js';
import type { Patch } from '../../patch/content.js';
import { Doorbell, mapDoorbell } from './doorbell.js';
import { planEntryWrites, writeByPages } from './entry-writer.js';
import { HoldLog } from './hold-log.js';
import type { ProcessMemory } from './memory.js';
import { type LoadedModule, listModules } from './modules.js';
import { hasIdentity } from './patch-loader.js';
import {
  asInstalled,
  findLeft,
  type LeftObject,
  pendingObjects,
  restrictTo,
  withoutParts,
} from './patch-objects.js';
import { prepareArrived, settleObjects, writeRegistry } from './patch-register.js';
import { readMappings } from './proc.js';
import { moduleKey, type ProcessSession } from './process-session.js';
import { ProcessSpace } from './process-space.js';
import type { RegisteredDoorbell, RegisteredObject, RegisteredPatch, Registry } from './registry.js';
import { findRegistryMapping, RegistryStore } from './registry-store.js';
import { writeWhileStopped } from './stopped-write.js';
import { TaskRoster } from './task-roster.js';
import { afterTransition } from './trampolines.js';

/** What was done when a process told that it had loaded or unloaded something. */
export interface ObjectChanges {
  readonly left: readonly LeftObject[];
  readonly patched: readonly { readonly patch: RegisteredPatch; readonly object: string }[];
  /** They run as they are: a transition can bring the patch to them, once they are loaded. */
  readonly refused: readonly {
    readonly patch: RegisteredPatch;
    readonly object: string;
    readonly error: LivegraftError;
  }[];
  /** It has rung before unheard: what came then runs as it is, too. */
  readonly isMissed: boolean;
}

/** Leads the dynamic linker through the doorbell, and takes up its watch. All threads are stopped for a moment. */
export function installDoorbell(session: ProcessSession): RegisteredDoorbell {
  const { store, registry } = session;
  if (store === undefined || registry === undefined) throw new Error('no registry');
  let registered = registry.doorbell;
  if (registered === undefined) {
    registered = mapDoorbell(session);
    writeRegistry(session, { ...registry, doorbell: registered });
  }
  // Tasks that ring wait for us from the first on.
  new Doorbell(session.memory, registered).arm();
  writeEntry(session, registered, 'direct');
  return registered;
}

/** The dynamic linker is as it was, and the doorbell's memory out of use. */
export function removeDoorbell(session: ProcessSession): void {
  const { registry } = session;
  if (registry?.doorbell === undefined) return;
  const bell = new Doorbell(session.memory, registry.doorbell);
  bell.disarm();
  writeEntry(session, registry.doorbell, 'below');
  writeRegistry(session, { ...registry, doorbell: undefined });
}

/** How long to try to stop all threads. */
const ENTRY_TIMEOUT_MS = 3000;

function writeEntry(session: ProcessSession, doorbell: RegisteredDoorbell, to: 'direct' | 'below'): void {
  const { pid, memory, tracer, store, registry } = session;
  if (store === undefined || registry === undefined) throw new Error('no registry');
  const inspector = session.inspector();
  const space = new ProcessSpace({ pid, memory, inspector, store, registry, isFork: false });
  const roster = new TaskRoster({
    tracer,
    space,
    isInTransition: () => false,
    onForget: () => {},
    onStranger: () => {},
  });
  const keepOut = to === 'below' ? { keepOut: doorbell.redirect.trampoline } : {};
  writeWhileStopped({
    tracer,
    space,
    plan: () => planEntryWrites(memory, [doorbell], to).map((write) => ({ ...write, ...keepOut })),
    stays: () => true,
    expectAlive: () => roster.pump(),
    timeoutMs: ENTRY_TIMEOUT_MS,
    // One entry, of a function that is called when a library is loaded: nothing waits for it.
    holds: new HoldLog(),
    notice: () => {},
    whenStopped: () => {},
    letGo: (record) => tracer.resume(record.tracee),
  });
}

/**
 * Patches objects as a process loads them: between their mapping, of which the doorbell tells, and the first of their code that
 * runs, constructors included; only the dynamic linker's own work on them (IFUNC resolvers, in some versions) may come before. So
 * no thread can be inside, and the redirects are final at once; while the transition of the patch itself runs, they choose.
 */
export class ObjectWatch {
  readonly #bell: Doorbell;
  /** What was there when it was last looked, and how often it had rung by then. */
  #known: ReadonlySet<string> = new Set();
  #rings = 0;

  /** Whatever has been loaded by now may be running. */
  constructor(session: ProcessSession, bell: Doorbell) {
    this.#bell = bell;
    this.learn(session.modules, bell.rings);
  }

  /** Undefined when it has not rung. Threads must be seized; `contentOf` finds the file of a patch, and throws if it can't. */
  attend(
    session: ProcessSession,
    contentOf: (patch: RegisteredPatch) => Patch,
    giveUp: (part: RegisteredPatch) => void,
  ): ObjectChanges | undefined {
    const { rings } = this.#bell;
    if (rings === this.#bell.answered) return undefined;
    // Nobody has waited for a ring that was missed: what came with it may be running.
    const isWaiting = rings === this.#rings + 1 && this.#bell.isArmed;
    try {
      const left = settleObjects(session, giveUp);
      const isFresh = (module: LoadedModule) => isWaiting && !this.#known.has(moduleKey(module));
      const fresh = session.modules.filter(isFresh);
      return { left, ...patchFresh(session, fresh, contentOf), isMissed: !isWaiting };
    } finally {
      this.learn(session.modules, rings);
      this.#bell.answer(rings);
    }
  }

  /**
   * Lets the task go on at once when what has come or gone is of no patch: true then. Nothing is changed, so that no thread
   * need be seized.
   */
  passOver(memory: ProcessMemory): boolean {
    const { rings } = this.#bell;
    const mappings = readMappings(memory.pid) ?? [];
    const home = findRegistryMapping(mappings);
    const registry = home && new RegistryStore(memory, home.start).read();
    if (registry === undefined || rings !== this.#rings + 1) return false;
    const modules = listModules(memory, mappings);
    const pending = registry.patches.flatMap(pendingObjects);
    const isWanted = modules.some(
      (module) => !this.#known.has(moduleKey(module)) && pending.some((object) => isOf(module, object)),
    );
    if (isWanted || findLeft(registry, memory, mappings).length > 0) return false;
    this.learn(modules, rings);
    this.#bell.answer(rings);
    return true;
  }

  /** How often it had rung when it was last looked. */
  get rings(): number {
    return this.#rings;
  }

  /** Takes what is there for known. */
  learn(modules: readonly LoadedModule[], rings: number): void {
    this.#known = new Set(modules.map(moduleKey));
    this.#rings = rings;
  }
}

/** What can't be read or is no ELF file is not what a patch was made for. */
function isOf(module: LoadedModule, object: RegisteredObject): boolean {
  try {
    return hasIdentity(module, object);
  } catch (error) {
    if (error instanceof LivegraftError || error instanceof ParseError) return false;
    throw error;
  }
}

function patchFresh(
  session: ProcessSession,
  fresh: readonly LoadedModule[],
  contentOf: (patch: RegisteredPatch) => Patch,
): Pick<ObjectChanges, 'patched' | 'refused'> {
  const patched: { patch: RegisteredPatch; object: string }[] = [];
  const refused: { patch: RegisteredPatch; object: string; error: LivegraftError }[] = [];
  for (const patch of session.registry?.patches ?? []) {
    for (const object of pendingObjects(patch)) {
      if (!fresh.some((module) => isOf(module, object))) continue;
      try {
        patchObject(session, contentOf(patch), patch, object.name);
        patched.push({ patch, object: object.name });
      } catch (error) {
        if (!(error instanceof LivegraftError)) throw error;
        refused.push({ patch, object: object.name, error });
      }
    }
  }
  return { patched, refused };
}

/** Brings a patch to an object that no thread is in. */
function patchObject(session: ProcessSession, content: Patch, patch: RegisteredPatch, name: string): void {
  if (content.manifest.objects.some((object) => object.name === name && object.callbacks !== undefined)) {
    // Callbacks may use the object, which the dynamic linker has not made ready yet.
    throw new LivegraftError('callbacks-wait', `${name}: its callbacks can't run before it is loaded`, {
      remedy: `it runs as it is until the patch is applied again (${patch.path})`,
    });
  }
  prepareArrived(session, content, patch, [name]);
  const { registry } = session;
  if (registry === undefined) throw new Error('no registry');
  const { transition } = registry;
  const part = registry.patches.filter(({ id }) => id === patch.id).map((now) => restrictTo(now, [name]));
  const functions = part.flatMap((one) => one.functions);
  const isChoosing = transition?.patchId === patch.id && transition.objects?.includes(name) !== false;
  try {
    if (isChoosing) {
      // The part becomes final with the others.
      writeByPages(session.memory, planEntryWrites(session.memory, functions, 'choosing'));
      return;
    }
    // Killed in the middle, it is left as a transition that has begun: continued, or taken back, it is consistent.
    if (transition === undefined)
      writeRegistry(session, { ...registry, transition: startOf(patch.id, name) });
    writeByPages(session.memory, planEntryWrites(session.memory, functions, 'direct'));
  } catch (error) {
    // Nobody has run it yet: what was written is taken back, and nothing leads into the part any more.
    writeByPages(session.memory, planEntryWrites(session.memory, functions, 'below'));
    const patches = registry.patches.map((p) => (p.id === patch.id ? withoutParts(p, [name]) : p));
    writeRegistry(session, { ...registry, patches });
    session.cleanUpAfterFailure();
    throw error;
  }
  const after =
    transition === undefined
      ? { ...registry, ...afterTransition(registry, patch.id, [name], 'patch') }
      : {
          ...registry,
          patches: registry.patches.map((p) => (p.id === patch.id ? asInstalled(p, [name]) : p)),
        };
  writeRegistry(session, after);
}

function startOf(patchId: string, object: string): NonNullable<Registry['transition']> {
  return {
    patchId,
    objects: [object],
    direction: 'patch',
    model: 'hybrid',
    phase: 'installing',
    startedAt: new Date().toISOString(),
  };
}
