import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { AwaitableCallbackObject } from '../../engine/callbacks.js';
import type { Straggler } from '../../engine/events.js';
import type { Direction } from '../../engine/target.js';
import type { Patch } from '../../patch/content.js';
import type { Digest } from '../../patch/file.js';
import type { PatchLayout } from '../../patch/layout.js';
import { BELOW_OBJECT, type SymbolSource } from '../../patch/link.js';
import { expectCompatibleStates } from '../patch-states.js';
import { collectGarbage } from '../process/own-runtime.js';
import { findCallPlaces } from './call-places.js';
import type { GuestChange } from './gdb-client.js';
import { findCodeAllocator, GuestAllocator } from './guest-allocator.js';
import { GuestCalls } from './guest-calls.js';
import { GuestWatch } from './guest-watch.js';
import { findBarrier, type PlannedBarrier } from './kernel-barrier.js';
import { type CallbackKernel, KernelCallbacks } from './kernel-callbacks.js';
import { KernelEntries } from './kernel-entries.js';
import { ENTRY_BYTES, type EntrySite, expectNotNeeded, findEntrySite } from './kernel-entry-site.js';
import { linkForKernel } from './kernel-link.js';
import {
  describeLoaded,
  fitsInto,
  type LoadPlan,
  layoutForKernel,
  oldRanges,
  type PlannedFunction,
  textPagesOf,
} from './kernel-load-plan.js';
import {
  KernelObjects,
  modulesOf,
  type ReplacedFunction,
  replacedFunctions,
  VMLINUX,
} from './kernel-objects.js';
import { restrictToModules } from './kernel-patch-modules.js';
import {
  findAnchorPlace,
  type KernelRange,
  type KernelRegistry,
  KernelRegistryStore,
  REGISTRY_BYTES,
  type RegisteredKernelFunction,
  type RegisteredKernelPatch,
  type RegisteredKernelStraggler,
} from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { KernelTransition } from './kernel-transition.js';
import {
  afterTransition,
  enabledPatches,
  entryOf,
  kernelVersions,
  PatchVersions,
} from './kernel-versions.js';
import { LateModules } from './late-modules.js';

/** The registry has room for so many stragglers beside the patches. */
const MAX_NOTED = 100;
/** "lg" and a count: no value of the kernel's own for patch_state, which older registries use. */
const SWITCHED_BASE = 0x6c67_0000;

export interface KernelLoadOptions {
  /** A declared one: see {@link findBarrier}. */
  readonly barrier: string | undefined;
  /** All older patches go in the transition that brings this one. */
  readonly replace: boolean;
  /** Its file. */
  readonly path: string;
}

/** Puts patches into a running kernel and finds those that are there. */
export class KernelPatcher {
  readonly #session: KernelSession;
  readonly #arch: Architecture;
  readonly #store: KernelRegistryStore;
  readonly #calls: GuestCalls;
  readonly #objects: KernelObjects;
  /** Whether the guest still is the one that the registry was read from. */
  readonly watch: GuestWatch;
  /** Modules that come and go. */
  readonly late: LateModules;
  #registry: KernelRegistry;

  private constructor(
    session: KernelSession,
    arch: Architecture,
    store: KernelRegistryStore,
    calls: GuestCalls,
    registry: KernelRegistry,
  ) {
    this.#session = session;
    this.#arch = arch;
    this.#store = store;
    this.#calls = calls;
    this.#objects = new KernelObjects(session);
    this.watch = new GuestWatch(session, store);
    this.late = new LateModules(session, arch, this, this.#objects);
    this.#registry = registry;
  }

  /** Reads the registry in the guest; gives back a task that a killed livegraft had borrowed. */
  static async open(session: KernelSession, arch: Architecture): Promise<KernelPatcher> {
    session.client.phase = 'registry';
    const { kernel } = session;
    const anchor = findAnchorPlace(kernel.expect('_etext'), (at, size) => kernel.imageBytes(at, size));
    const places = findCallPlaces(kernel, arch);
    session.guard?.watch({ anchor, ...places });
    const store = new KernelRegistryStore(session.data, session.client, anchor);
    const registry = await store.read();
    const calls = new GuestCalls(session.client, store, places);
    if (store.borrowed !== 0) {
      await session.stop();
      await calls.recover(store.borrowed);
    }
    await session.usePatches(registry.patches);
    return new KernelPatcher(session, arch, store, calls, registry);
  }

  get registry(): KernelRegistry {
    return this.#registry;
  }

  /**
   * Everything that can be refused before the guest is changed: `wrong-target`, `old-code-differs`, `no-fentry`,
   * `function-needed`, `module-not-loaded`, `parts-connected`, `module-reloaded`, `symbol-unresolved` (by name). With `late`, none of the
   * modules that the patch is for need be loaded.
   */
  async check(patch: Patch, digest: Digest, late: boolean): Promise<void> {
    await this.#objects.expectSame(patch, digest);
    for (const replaced of replacedFunctions(patch)) expectNotNeeded(replaced);
    const isOptional = this.late.expectWaits(patch, late);
    const present = modulesOf(patch).filter(({ name }) => this.#objects.isLoaded(name));
    this.late.expectOlderFirst(
      patch.id,
      present.map(({ name }) => name),
    );
    const source = this.symbols(await this.plan(patch, false));
    const missing = patch.symbols.filter(
      (s, index) => s.kind === 'external' && !isOptional(index) && source.resolve(s) === undefined,
    );
    if (missing.length > 0) {
      const names = missing.map((symbol) => symbol.name).join(', ');
      throw new LivegraftError('symbol-unresolved', `the running kernel has no ${names}`, {
        remedy: 'load the module that defines it, or build the patch for this kernel',
        details: { symbols: names },
      });
    }
  }

  /** Where the entries of a patch's functions are in the running kernel. */
  entriesOf(patch: Patch): readonly { readonly name: string; readonly address: number }[] {
    const present = replacedFunctions(patch).filter(({ object }) => this.#objects.isLoaded(object));
    return present.map(({ object, fn }) => ({
      name: fn.name,
      address: this.#objects.addressOf(object, fn.old),
    }));
  }

  /**
   * Writes the new code and registers it; the old code is untouched. A task is borrowed to allocate memory, but for a patch that
   * was there before: its memory is written once more, its data begins anew, and what it changes may lie elsewhere.
   */
  async load(patch: Patch, options: KernelLoadOptions, timeoutMs: number): Promise<RegisteredKernelPatch> {
    const replaces =
      (options.replace || patch.manifest.replace === true) && enabledPatches(this.#registry).length > 0;
    const planned = await this.plan(patch, replaces);
    const barrier = await this.#findBarrier(patch, planned, options.barrier);
    const layout = layoutForKernel(patch, planned.freeSlot + 1);
    const before = this.#registry.patches.find((each) => each.id === patch.id);
    const known = before !== undefined && fitsInto(layout, before) ? before.memory.address : undefined;
    const address = known ?? (await this.#allocateFor(layout, timeoutMs));
    this.#session.client.phase = 'load';
    const appliedAt = before?.appliedAt ?? new Date().toISOString();
    // The newest comes last: its versions lie above those of all others.
    const others = this.#registry.patches.filter((each) => each.id !== patch.id);
    const prepare = async () => {
      const [session, symbols] = [this.#session, this.late.withPlaceholders(patch, this.symbols(planned))];
      const image = await linkForKernel(session, patch, layout, address, symbols, this.#arch.redirector);
      const registered = {
        ...describeLoaded(patch, planned, barrier, layout, image, appliedAt),
        objects: modulesOf(patch),
        path: options.path,
      };
      const registry = { ...this.#registry, patches: [...others, registered] };
      this.#store.expectRoom(registry);
      return { image, registered, registry };
    };
    const { image, registered, registry } = await prepare().catch(async (error) => {
      // What went wrong first is what is told.
      if (known === undefined) await this.#free(address, layout, timeoutMs).catch(() => {});
      throw error;
    });
    await this.#session.sliced.writeMemory(address, image.bytes);
    await this.save(registry);
    return registered;
  }

  async #allocateFor(layout: PatchLayout, timeoutMs: number): Promise<number> {
    const session = this.#session;
    session.client.phase = 'allocate';
    const found = findCodeAllocator(session.kernel, session.layout);
    collectGarbage();
    await session.stop();
    const address = await this.#calls.borrow(timeoutMs, async (call) => {
      const allocator = new GuestAllocator(session.kernel, found, call);
      const allocated = await allocator.allocateCode(layout.sizeBytes, textPagesOf(layout));
      if (this.#store.hasMemory) return allocated;
      try {
        await this.#store.useMemory(await allocator.allocate(REGISTRY_BYTES));
      } catch (error) {
        if (error instanceof LivegraftError && error.code === 'guest-no-memory')
          await allocator.freeCode(allocated, textPagesOf(layout));
        throw error;
      }
      return allocated;
    });
    session.resume();
    return address;
  }

  async #free(address: number, layout: PatchLayout, timeoutMs: number): Promise<void> {
    const { kernel, layout: structures } = this.#session;
    const found = findCodeAllocator(kernel, structures);
    await this.#session.stop();
    await this.#calls.borrow(timeoutMs, (call) =>
      new GuestAllocator(kernel, found, call).freeCode(address, textPagesOf(layout)),
    );
    this.#session.resume();
  }

  /**
   * A transition of a registered patch, recorded before it begins; one that was left half-done is taken up. `usesBarrier`: tasks may
   * go ahead of each other. `objects`: of an applied patch, the modules whose functions have just been added to `patch`.
   */
  async transition(
    patch: RegisteredKernelPatch,
    direction: 'patch' | 'unpatch',
    usesBarrier: boolean,
    objects?: readonly string[],
  ): Promise<KernelTransition> {
    const left = this.#registry.transition;
    if (left === undefined) {
      const serial = this.#registry.serial + 1;
      await this.save({
        patches:
          objects === undefined
            ? this.#withState(patch.id, direction === 'patch' ? 'applying' : 'reverting')
            : this.#registry.patches.map((each) => (each.id === patch.id ? patch : each)),
        transition: {
          patchId: patch.id,
          ...(objects && { objects }),
          begunAs: direction,
          direction,
          switchedValue: SWITCHED_BASE + (serial & 0xffff),
          startedAt: new Date().toISOString(),
          stateOffset: this.#session.tasks.stateField.offset,
        },
        serial,
      });
    } else {
      this.#session.useStateField(left);
      if (left.direction !== direction)
        await this.save({ ...this.#registry, transition: turned(left, direction) });
    }
    const { transition } = this.#registry;
    if (transition === undefined) throw new Error('the transition was not recorded');
    const now = this.#registry.patches.find(({ id }) => id === patch.id) ?? patch;
    const versions = this.versionsOf(restrictToModules(now, transition.objects));
    return new KernelTransition(this.#session, this.watch, versions, transition, usesBarrier, {
      saveDirection: (now) => this.save({ ...this.#registry, transition: turned(transition, now) }),
      callbackObjects: () => this.callbackObjects(patch, transition.objects),
    });
  }

  /**
   * The objects of a patch that are there and have callbacks; one that an earlier run began is seen to its end. `objects`: of an applied
   * patch, modules that came later.
   */
  async callbackObjects(
    patch: RegisteredKernelPatch,
    objects?: readonly string[],
  ): Promise<readonly AwaitableCallbackObject[]> {
    if (patch.callbacks === undefined) return [];
    const now = this.#registry.patches.find(({ id }) => id === patch.id) ?? patch;
    const present = await this.late.presentOf(now);
    const chosen =
      objects === undefined ? [VMLINUX, ...present] : present.filter((name) => objects.includes(name));
    return KernelCallbacks.open(this.#callbackKernel, now, chosen);
  }

  /** Those of modules that a watch had begun to bring a patch to when it ended, and that are still there. */
  async callbacksOfArrivals(patch: RegisteredKernelPatch): Promise<readonly AwaitableCallbackObject[]> {
    const names = patch.arriving?.map(({ name }) => name) ?? [];
    return KernelCallbacks.open(this.#callbackKernel, patch, names);
  }

  /** The callbacks of a module that is being loaded or unloaded; undefined when it has none. */
  async callbacksOfModule(
    patch: RegisteredKernelPatch,
    module: string,
  ): Promise<KernelCallbacks | undefined> {
    return KernelCallbacks.ofModule(this.#callbackKernel, patch, module);
  }

  get #callbackKernel(): CallbackKernel {
    return { session: this.#session, calls: this.#calls, watch: this.watch };
  }

  /** For good, and before the first task is switched unchecked. */
  async noteForced(id: string): Promise<void> {
    const patches = this.#registry.patches.map((patch) =>
      patch.id === id ? { ...patch, forced: true } : patch,
    );
    await this.save({ ...this.#registry, patches });
  }

  /** Adds the tasks that a run could not switch to what earlier runs have left. */
  async noteStragglers(stragglers: readonly Straggler[]): Promise<void> {
    const { transition } = this.#registry;
    if (transition === undefined) return;
    const noted = stragglers.map(({ task, name, attempts, sinceMs }): RegisteredKernelStraggler => {
      const known = transition.stragglers?.find((each) => each.id === task && each.name === name);
      const since = known?.since ?? new Date(Date.now() - sinceMs).toISOString();
      return { id: task, name, attempts: attempts + (known?.attempts ?? 0), since };
    });
    await this.save({
      ...this.#registry,
      transition: { ...transition, stragglers: noted.slice(0, MAX_NOTED) },
    });
  }

  /** Records that every task has switched and the entries are final. */
  async complete(id: string, direction: Direction, forced: boolean): Promise<void> {
    await this.save(afterTransition(this.#registry, id, direction, forced));
  }

  /** A registered patch among the others. */
  versionsOf(patch: RegisteredKernelPatch, registry = this.#registry): PatchVersions {
    return new PatchVersions(registry, patch);
  }

  /**
   * Whether all entries of an applied patch still lead to it or a later one; rejects with `module-reloaded` for those of a module that
   * was loaded again.
   */
  async expectEntries(patch: RegisteredKernelPatch): Promise<void> {
    const entries = new KernelEntries(this.#session);
    const versions = this.versionsOf(patch);
    for (const fn of patch.functions) {
      const state = await entries.state(versions, fn);
      if (state === 'redirected') continue;
      if (state === 'original') {
        throw new LivegraftError(
          'old-code-differs',
          `the entry of ${fn.name} in the running kernel was changed back, although patch ${patch.name} is applied`,
          { remedy: `revert patch ${patch.name} first`, details: { function: fn.name, patch: patch.id } },
        );
      }
      const what =
        state === 'moduleUnloaded' ? 'was unloaded since' : 'was loaded again since, without the patch';
      throw new LivegraftError('module-reloaded', `the module ${fn.object} ${what}`, {
        remedy: `revert patch ${patch.name}, then apply it again while the module is loaded`,
        details: { module: fn.object, function: fn.name, patch: patch.id },
      });
    }
  }

  /** In a stopped guest: the registry and other changes, either all or nothing. */
  async saveWith(registry: KernelRegistry, changes: readonly GuestChange[]): Promise<void> {
    const { client, memory } = this.#session;
    await this.#store.writeWith(registry, (all) => client.change(all), changes);
    memory.forget();
    this.#registry = registry;
  }

  async save(registry: KernelRegistry): Promise<void> {
    await this.watch.expectAlive();
    this.#session.client.phase = 'registry';
    await this.#store.write(registry);
    this.#session.endStep();
    this.#registry = registry;
    await this.#session.usePatches(registry.patches);
  }

  #withState(id: string, state: RegisteredKernelPatch['state']): readonly RegisteredKernelPatch[] {
    return this.#registry.patches.map((patch) => (patch.id === id ? { ...patch, state } : patch));
  }

  /**
   * What a patch changes on top of those that are there. A cumulative one also has the functions that only older ones changed, to
   * lead them back. `objects`: these modules alone, on top of those patches only that are older.
   */
  async plan(patch: Patch, replaces: boolean, objects?: readonly string[]): Promise<LoadPlan> {
    const enabled = enabledPatches(this.#registry);
    const older =
      objects === undefined
        ? this.#enabledBeside(patch)
        : enabled.slice(
            0,
            enabled.findIndex(({ id }) => id === patch.id),
          );
    const states = older.map((each) => ({ name: each.name, states: each.states ?? [] }));
    const { release } = this.#session.kernel.image;
    expectCompatibleStates(`kernel ${release}`, patch, states, replaces);
    const versions = kernelVersions(older);
    const functions: PlannedFunction[] = [];
    const all = replacedFunctions(patch);
    for (const [slot, replaced] of all.entries()) {
      if (!this.#objects.isLoaded(replaced.object) || objects?.includes(replaced.object) === false) continue;
      const entry = this.#objects.addressOf(replaced.object, replaced.fn.old);
      const below = versions.newest(entry);
      if (below === undefined) {
        functions.push({ replaced, slot, entry, ...(await this.#site(replaced, entry)), below });
        continue;
      }
      const { site, original, isDisplaced } = below;
      functions.push({ replaced, slot, entry, site, original, isDisplaced, below });
    }
    const isBelow = (fn: RegisteredKernelFunction) => functions.some(({ below }) => below === fn);
    for (const each of older) if (each.functions.some(isBelow)) await this.expectEntries(each);
    const own = new Set(functions.map(({ entry }) => entry));
    const restored = older
      .flatMap((each) => each.functions)
      .filter((fn) => versions.newest(entryOf(fn.old)) === fn && !own.has(entryOf(fn.old)));
    const places = new Map(
      [...(replaces ? older.flatMap(({ modules }) => modules) : []), ...this.#objects.placesOf(patch)].map(
        (place) => [place.name, place],
      ),
    );
    const leadBack = restored.map((fn, i) => ({
      ...fn,
      ...{ replaced: undefined, slot: all.length + i, entry: entryOf(fn.old), below: fn },
    }));
    return {
      replaces,
      states,
      functions: replaces ? [...functions, ...leadBack] : functions,
      places: [...places.values()],
      freeSlot: all.length + (replaces ? leadBack.length : 0),
    };
  }

  #enabledBeside({ id }: Patch): readonly RegisteredKernelPatch[] {
    return enabledPatches(this.#registry).filter((each) => each.id !== id);
  }

  /** The symbols of the running kernel, and {@link BELOW_OBJECT}. */
  symbols({ replaces, functions }: LoadPlan): SymbolSource {
    const source = this.#objects.symbols;
    return {
      ...source,
      resolve: (symbol) => {
        if (symbol.object !== BELOW_OBJECT) return source.resolve(symbol);
        const fn = functions.find(({ replaced }) => replaced?.fn.name === symbol.name);
        if (fn === undefined) return undefined;
        // What is replaced goes away; the original stays.
        if (fn.below !== undefined && !replaces) return entryOf(fn.below.new);
        return fn.isDisplaced ? undefined : fn.site + fn.original.length;
      },
    };
  }

  /** What is overwritten at the entry of a function that no patch has changed. */
  async #site(replaced: ReplacedFunction, entry: number): Promise<EntrySite> {
    const { data, kernel } = this.#session;
    const code = await data.readMemory(entry, ENTRY_BYTES);
    // To look through the whole text takes a while.
    this.#session.resume();
    return findEntrySite(kernel, this.#arch, replaced, entry, code);
  }

  async #findBarrier(
    patch: Patch,
    { functions }: LoadPlan,
    declared: string | undefined,
  ): Promise<PlannedBarrier | undefined> {
    const leaving = functions.flatMap(({ replaced, entry, below }): readonly KernelRange[] => [
      ...(replaced === undefined ? [] : oldRanges(replaced, entry)),
      ...(below?.new ?? []),
    ]);
    const others = kernelVersions(this.#enabledBeside(patch));
    const isPatched = (entry: number) => others.newest(entry) !== undefined;
    const name = declared ?? patch.manifest.barrier;
    const source = this.#objects.symbols;
    const isUsed = (entry: number) =>
      patch.symbols.some((symbol) => symbol.kind === 'external' && source.resolve(symbol) === entry);
    return await findBarrier(this.#session, this.#arch, name, leaving, isPatched, isUsed);
  }
}

type Transition = NonNullable<KernelRegistry['transition']>;

/** Going the other way, for other reasons. */
function turned(transition: Transition, direction: Transition['direction']): Transition {
  const { stragglers: _, ...rest } = transition;
  return { ...rest, direction, startedAt: new Date().toISOString() };
}
