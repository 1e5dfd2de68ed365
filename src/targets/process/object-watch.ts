import { GATE } from '../../arch/architecture.js';
import { LivegraftError, ParseError } from '../../base/errors.js';
import { type EntryState, planArrival } from '../../engine/objects.js';
import type { Patch } from '../../patch/content.js';
import { Doorbell, mapDoorbell } from './doorbell.js';
import { planEntryWrites, writeByPages } from './entry-writer.js';
import type { ProcessMemory } from './memory.js';
import { type LoadedModule, listModules } from './modules.js';
import { hasIdentity, loadedTwiceError } from './patch-loader.js';
import {
  asInstalled,
  findLeft,
  isOtherCopy,
  type LeftObject,
  pendingObjects,
  restrictTo,
  withoutParts,
} from './patch-objects.js';
import { objectTransition, prepareArrived, settleObjects, writeRegistry } from './patch-register.js';
import { readMappings } from './proc.js';
import { moduleKey, type ProcessSession } from './process-session.js';
import type { RegisteredDoorbell, RegisteredObject, RegisteredPatch } from './registry.js';
import { findRegistryMapping, RegistryStore } from './registry-store.js';
import { writeEntriesStopped } from './stopped-entries.js';

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

function writeEntry(session: ProcessSession, doorbell: RegisteredDoorbell, to: 'direct' | 'below'): void {
  writeEntriesStopped(session, [doorbell], to, () =>
    to === 'below' ? doorbell.redirect.trampoline : undefined,
  );
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

  /**
   * Attends to what has come by a ring: the number of rings that the caller has read, since another ring may be one for objects that leave. Undefined when that is answered already. Threads
   * must be seized; `contentOf` finds the file of a patch, and throws if it can't.
   */
  attend(
    session: ProcessSession,
    rings: number,
    contentOf: (patch: RegisteredPatch) => Patch,
    giveUp: (part: RegisteredPatch) => void,
  ): ObjectChanges | undefined {
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
   * Lets the task go on at once when what has come or gone by a ring is of no patch: true then. Nothing is changed, so that no thread
   * need be seized.
   */
  passOver(memory: ProcessMemory, rings: number): boolean {
    const mappings = readMappings(memory.pid) ?? [];
    const home = findRegistryMapping(mappings);
    const registry = home && new RegistryStore(memory, home.start).read();
    if (registry === undefined || rings !== this.#rings + 1) return false;
    const modules = listModules(memory, mappings);
    const objects = registry.patches.flatMap((patch) => patch.objects);
    const isWanted = modules.some(
      (module) =>
        !this.#known.has(moduleKey(module)) &&
        objects.some((object) =>
          object.part === undefined ? isOf(module, object) : isOtherCopy(module, object.part),
        ),
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
  const patches = session.registry?.patches ?? [];
  for (const patch of patches) {
    for (const { name, part } of patch.objects) {
      if (part !== undefined && fresh.some((module) => isOtherCopy(module, part)))
        refused.push({ patch, object: name, error: loadedTwiceError(session.pid, name) });
    }
  }
  const isFresh = (object: RegisteredObject) => fresh.some((module) => isOf(module, object));
  for (const object of new Set(
    patches
      .flatMap(pendingObjects)
      .filter(isFresh)
      .map(({ name }) => name),
  )) {
    const pending = patches.filter((patch) => pendingObjects(patch).some(({ name }) => name === object));
    for (const { patch, entries } of planArrival(pending, object, objectTransition(session))) {
      try {
        patchObject(session, contentOf(patch), patch, object, entries);
        patched.push({ patch, object });
      } catch (error) {
        if (!(error instanceof LivegraftError)) throw error;
        refused.push({ patch, object, error });
        break;
      }
    }
  }
  return { patched, refused };
}

/**
 * Brings a patch to an object that no thread is in. Entries lead through a gate until all are written, which one byte
 * opens for them together: killed before that, a run has changed nothing for who runs the object, and killed behind it, all. The next
 * one takes it back, or completes it (`settleObjects`).
 */
function patchObject(
  session: ProcessSession,
  content: Patch,
  patch: RegisteredPatch,
  name: string,
  entries: EntryState,
): void {
  if (content.manifest.objects.some((object) => object.name === name && object.callbacks !== undefined)) {
    // Callbacks may use the object, which the dynamic linker has not made ready yet.
    throw new LivegraftError('callbacks-wait', `${name}: its callbacks can't run before it is loaded`, {
      remedy: `it runs as it is until the patch is applied again (${patch.path})`,
    });
  }
  prepareArrived(session, content, patch, [name]);
  if (entries === 'below') return;
  const { registry, memory } = session;
  const [part] = (registry?.patches ?? [])
    .filter(({ id }) => id === patch.id)
    .map((now) => restrictTo(now, [name]));
  const gate = part?.objects[0]?.part?.gate;
  if (registry === undefined || part === undefined || gate === undefined) throw new Error('no part');
  const turn = (to: number) => memory.write(gate, Uint8Array.of(to));
  const withPatch = (change: (p: RegisteredPatch) => RegisteredPatch) => ({
    ...registry,
    patches: registry.patches.map((p) => (p.id === patch.id ? change(p) : p)),
  });
  try {
    writeByPages(memory, planEntryWrites(memory, part.functions, 'gated'));
    turn(entries === 'direct' ? GATE.open : GATE.choosing);
    writeByPages(memory, planEntryWrites(memory, part.functions, entries));
  } catch (error) {
    // Nobody has run it yet: what was written is taken back, and nothing leads into the part any more.
    turn(GATE.shut);
    writeByPages(memory, planEntryWrites(memory, part.functions, 'below'));
    writeRegistry(
      session,
      withPatch((p) => withoutParts(p, [name])),
    );
    session.cleanUpAfterFailure();
    throw error;
  }
  if (entries === 'direct')
    writeRegistry(
      session,
      withPatch((p) => asInstalled(p, [name])),
    );
}
