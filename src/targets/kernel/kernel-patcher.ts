import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { Straggler } from '../../engine/events.js';
import type { Patch } from '../../patch/content.js';
import type { Digest } from '../../patch/file.js';
import { layoutPatch, type PatchLayout } from '../../patch/layout.js';
import type { LinkedImage } from '../../patch/link.js';
import { collectGarbage } from '../process/own-runtime.js';
import { findCallPlaces, GuestCalls } from './guest-calls.js';
import { GuestWatch } from './guest-watch.js';
import { findBarrier, type PlannedBarrier } from './kernel-barrier.js';
import { ENTRY_BYTES, type EntrySite, expectNotNeeded, findEntrySite } from './kernel-entry-site.js';
import { linkForKernel } from './kernel-link.js';
import { KernelObjects, type ReplacedFunction, replacedFunctions } from './kernel-objects.js';
import {
  type KernelRange,
  type KernelRegistry,
  KernelRegistryStore,
  REGISTRY_BYTES,
  type RegisteredKernelFunction,
  type RegisteredKernelPatch,
  type RegisteredKernelStraggler,
} from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { REDIRECT_BYTES } from './kernel-trampoline.js';
import { KernelTransition } from './kernel-transition.js';

const PAGE_BYTES = 4096;
/** The registry has room for so many stragglers beside the patches. */
const MAX_NOTED = 100;
/** "lg" and a count: no value of the kernel's own for patch_state, which older registries use. */
const SWITCHED_BASE = 0x6c67_0000;

/** Puts patches into a running kernel and finds those that are there. */
export class KernelPatcher {
  readonly #session: KernelSession;
  readonly #arch: Architecture;
  readonly #store: KernelRegistryStore;
  readonly #calls: GuestCalls;
  readonly #objects: KernelObjects;
  /** Whether the guest still is the one that the registry was read from. */
  readonly watch: GuestWatch;
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
    this.#registry = registry;
  }

  /** Reads the registry in the guest; gives back a task that a killed livegraft had borrowed. */
  static async open(session: KernelSession, arch: Architecture): Promise<KernelPatcher> {
    session.client.phase = 'registry';
    const end = session.kernel.expect('_etext');
    const places = findCallPlaces(session.kernel, arch);
    session.guard?.watch({ end, ...places });
    const store = new KernelRegistryStore(session.data, session.client, end);
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
   * `already-patched`, `function-needed`, `module-not-loaded`, `symbol-unresolved` (by name).
   */
  async check(patch: Patch, digest: Digest): Promise<void> {
    await this.#objects.expectSame(patch, digest);
    for (const replaced of replacedFunctions(patch)) {
      const { object, fn } = replaced;
      expectNotNeeded(replaced);
      const owner = this.#registry.patches.find(
        (p) =>
          p.id !== patch.id &&
          p.state !== 'reverted' &&
          p.functions.some((f) => f.object === object && f.name === fn.name),
      );
      if (owner !== undefined) {
        throw new LivegraftError('already-patched', `${fn.name} is patched by ${owner.name} already`, {
          remedy: 'revert that patch first, and put both changes into one',
          details: { function: fn.name, patch: owner.id },
        });
      }
      await this.#site(replaced);
    }
    const source = this.#objects.symbols;
    const missing = patch.symbols.filter((s) => s.kind === 'external' && source.resolve(s) === undefined);
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
    return replacedFunctions(patch).map(({ object, fn }) => ({
      name: fn.name,
      address: this.#objects.addressOf(object, fn.old),
    }));
  }

  /**
   * Borrows a task to allocate memory, writes the new code, and registers it. The old code is untouched. `barrier` is a declared
   * one: see {@link findBarrier}.
   */
  async load(
    patch: Patch,
    barrier: string | undefined,
    appliedAt: string,
    timeoutMs: number,
  ): Promise<RegisteredKernelPatch> {
    const layout = layoutForKernel(patch);
    const planned = await this.#findBarrier(patch, barrier);
    const session = this.#session;
    session.client.phase = 'allocate';
    collectGarbage();
    await session.stop();
    const address = await this.#calls.borrow(timeoutMs, async (call) => {
      if (!this.#store.hasMemory) await this.#store.useMemory(await this.#allocate(call, REGISTRY_BYTES));
      const allocated = await this.#allocate(call, layout.sizeBytes);
      const textPages = Math.ceil(layout.text.sizeBytes / PAGE_BYTES);
      for (const name of ['set_memory_ro', 'set_memory_x']) {
        const result = BigInt.asIntN(32, await call(session.kernel.expect(name), allocated, textPages));
        if (result !== 0n) {
          throw new LivegraftError('guest-no-memory', `${name} failed in the guest with ${result}`, {
            remedy: `free memory in the guest; ${layout.sizeBytes} bytes of it stay allocated, and nothing uses them`,
            details: { function: name, result: Number(result) },
          });
        }
      }
      return allocated;
    });
    session.resume();
    session.client.phase = 'load';
    const image = await linkForKernel(
      session,
      patch,
      layout,
      address,
      this.#objects.symbols,
      this.#arch.redirector,
    );
    await session.sliced.writeMemory(address, image.bytes);
    const registered = await this.#describe(patch, planned, layout, image, appliedAt);
    await this.save({ ...this.#registry, patches: [...this.#registry.patches, registered] });
    return registered;
  }

  /** Writes the code of a registered patch that nobody runs once more: its data begins anew, and modules may lie elsewhere. */
  async loadAgain(
    patch: Patch,
    barrier: string | undefined,
    registered: RegisteredKernelPatch,
  ): Promise<RegisteredKernelPatch> {
    const layout = layoutForKernel(patch);
    const planned = await this.#findBarrier(patch, barrier);
    const { address } = registered.memory;
    const linked = await linkForKernel(
      this.#session,
      patch,
      layout,
      address,
      this.#objects.symbols,
      this.#arch.redirector,
    );
    await this.#session.sliced.writeMemory(address, linked.bytes);
    const described = await this.#describe(patch, planned, layout, linked, registered.appliedAt);
    const patches = this.#registry.patches.map((each) => (each.id === patch.id ? described : each));
    await this.save({ ...this.#registry, patches });
    return described;
  }

  /**
   * A transition of a registered patch, recorded before it begins; one that was left half-done is taken up. `usesBarrier`: tasks may
   * go ahead of each other.
   */
  async transition(
    patch: RegisteredKernelPatch,
    direction: 'patch' | 'unpatch',
    usesBarrier: boolean,
  ): Promise<KernelTransition> {
    const left = this.#registry.transition;
    if (left === undefined) {
      const serial = this.#registry.serial + 1;
      await this.save({
        patches: this.#withState(patch.id, direction === 'patch' ? 'applying' : 'reverting'),
        transition: {
          patchId: patch.id,
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
    return new KernelTransition(this.#session, this.watch, patch, transition, usesBarrier, async (now) => {
      await this.save({ ...this.#registry, transition: turned(transition, now) });
    });
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
  async complete(
    patch: RegisteredKernelPatch,
    direction: 'patch' | 'unpatch',
    forced: boolean,
  ): Promise<void> {
    const patches = this.#withState(patch.id, direction === 'patch' ? 'applied' : 'reverted').map((p) =>
      p.id === patch.id ? { ...p, forced: p.forced || forced } : p,
    );
    await this.save({ ...this.#registry, patches, transition: undefined });
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

  /** Memory near the kernel's text: the allocator that modules use. */
  async #allocate(
    call: (address: number, ...args: readonly number[]) => Promise<bigint>,
    sizeBytes: number,
  ): Promise<number> {
    const address = Number(
      BigInt.asIntN(64, await call(this.#session.kernel.expect('module_alloc'), sizeBytes)),
    );
    if (address === 0) {
      throw new LivegraftError('guest-no-memory', `the guest has no ${sizeBytes} bytes for code`, {
        remedy: 'free memory in the guest (or module space), and repeat the command',
        details: { sizeBytes },
      });
    }
    return address;
  }

  /** What is overwritten at the entry of a function in the running kernel. */
  async #site(replaced: ReplacedFunction): Promise<EntrySite> {
    const { data, kernel } = this.#session;
    const entry = this.#objects.addressOf(replaced.object, replaced.fn.old);
    const code = await data.readMemory(entry, ENTRY_BYTES);
    // To look through the whole text takes a while.
    this.#session.resume();
    return findEntrySite(kernel, this.#arch, replaced, entry, code);
  }

  async #describe(
    patch: Patch,
    barrier: PlannedBarrier | undefined,
    layout: PatchLayout,
    image: LinkedImage,
    appliedAt: string,
  ): Promise<RegisteredKernelPatch> {
    const functions: RegisteredKernelFunction[] = [];
    const trampolineAt = (index: number) => image.base + layout.redirectOffset + index * REDIRECT_BYTES;
    for (const [index, replaced] of replacedFunctions(patch).entries()) {
      const { object, fn } = replaced;
      const site = await this.#site(replaced);
      const loaded = (name: string): KernelRange => {
        const found = image.functions.find((f) => f.name === name);
        if (found === undefined)
          throw new LivegraftError(
            'patch-malformed',
            `the patch replaces ${fn.name} by ${name}, which it does not hold`,
          );
        return found;
      };
      functions.push({
        object,
        name: fn.name,
        old: [fn.old, ...fn.parts].map((range) => ({
          name: range.name,
          address: this.#objects.addressOf(object, range),
          sizeBytes: range.sizeBytes,
        })),
        new: [loaded(fn.newSymbol), ...fn.newParts.map(loaded)],
        ...site,
        trampoline: trampolineAt(index),
      });
    }
    const { ehFrame } = layout;
    return {
      id: patch.id,
      name: patch.manifest.name,
      state: 'applying',
      forced: false,
      appliedAt,
      memory: { address: image.base, sizeBytes: layout.sizeBytes },
      text: { address: image.base, sizeBytes: layout.codeSizeBytes },
      modules: this.#objects.placesOf(patch),
      ehFrame: ehFrame && { address: image.base + ehFrame.offset, sizeBytes: ehFrame.sizeBytes },
      functions,
      ...(barrier && { barrier: { ...barrier, trampoline: trampolineAt(functions.length) } }),
    };
  }

  async #findBarrier(patch: Patch, declared: string | undefined): Promise<PlannedBarrier | undefined> {
    const replaced = replacedFunctions(patch).map(({ object, fn }) => ({
      name: fn.name,
      address: this.#objects.addressOf(object, fn.old),
      sizeBytes: fn.old.sizeBytes,
    }));
    return await findBarrier(
      this.#session,
      this.#arch.decoder,
      declared ?? patch.manifest.barrier,
      replaced,
      (entry) => this.#isPatched(patch.id, entry),
    );
  }

  #isPatched(byOtherThan: string, entry: number): boolean {
    return this.#registry.patches.some(
      (patch) =>
        patch.id !== byOtherThan &&
        patch.state !== 'reverted' &&
        patch.functions.some((fn) => fn.old[0]?.address === entry),
    );
  }
}

type Transition = NonNullable<KernelRegistry['transition']>;

/** Going the other way, for other reasons. */
function turned(transition: Transition, direction: Transition['direction']): Transition {
  const { stragglers: _, ...rest } = transition;
  return { ...rest, direction, startedAt: new Date().toISOString() };
}

/** With a trampoline for each function, and one for the barrier. */
function layoutForKernel(patch: Patch): PatchLayout {
  return layoutPatch(patch, (replacedFunctions(patch).length + 1) * REDIRECT_BYTES);
}
