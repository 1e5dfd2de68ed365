import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { Patch } from '../../patch/content.js';
import { gotKey, gotKindOf, type PatchLayout } from '../../patch/layout.js';
import type { SymbolSource } from '../../patch/link.js';
import { EXCEPTION_SEARCH, sectionsFor } from '../../patch/part.js';
import type { GuestChange } from './gdb-client.js';
import type { GuestWatch } from './guest-watch.js';
import type { KernelCallbacks } from './kernel-callbacks.js';
import { KernelEntries } from './kernel-entries.js';
import { linkForKernel } from './kernel-link.js';
import { describeFunction, type LoadPlan, layoutForKernel, redirectAt } from './kernel-load-plan.js';
import { type KernelObjects, notLoaded } from './kernel-objects.js';
import {
  type LeftModule,
  pendingModules,
  restrictToModules,
  withoutArrivals,
  withoutLeftModules,
} from './kernel-patch-modules.js';
import type { KernelPatchModule, KernelRegistry, RegisteredKernelPatch } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { encodeJump } from './kernel-trampoline.js';
import { encodeChooser } from './kernel-transition.js';
import { enabledPatches, type PatchVersions } from './kernel-versions.js';
import { ModuleWatch, placeOf, readModuleBuildId, readModuleSections } from './module-identity.js';

const STUB_BYTES = 16;
const GOT_ENTRY_BYTES = 8;

/** What a {@link LateModules} needs of who writes patches. */
export interface PatchWriter {
  readonly registry: KernelRegistry;
  readonly watch: GuestWatch;
  plan(patch: Patch, replaces: boolean, objects?: readonly string[]): Promise<LoadPlan>;
  symbols(plan: LoadPlan): SymbolSource;
  versionsOf(patch: RegisteredKernelPatch, registry?: KernelRegistry): PatchVersions;
  callbacksOfModule(patch: RegisteredKernelPatch, module: string): Promise<KernelCallbacks | undefined>;
  save(registry: KernelRegistry): Promise<void>;
  saveWith(registry: KernelRegistry, changes: readonly GuestChange[]): Promise<void>;
}

/** What became of a module of a patch. `unpatched`: loaded while nobody watched; `unfit`: another build than the patch is for. */
export type ModuleState = 'patched' | 'pending' | 'unpatched' | 'unfit';

/**
 * Modules of patches that are loaded later, or unloaded. The patch's memory was given to it when it was applied, with room for
 * all, so that nothing has to be called in the guest when one comes: its part of the code is linked and written then.
 */
export class LateModules {
  readonly #session: KernelSession;
  readonly #arch: Architecture;
  readonly #patcher: PatchWriter;
  readonly #objects: KernelObjects;

  constructor(session: KernelSession, arch: Architecture, patcher: PatchWriter, objects: KernelObjects) {
    this.#session = session;
    this.#arch = arch;
    this.#patcher = patcher;
    this.#objects = objects;
  }

  /**
   * Whether a patch can wait for those of its modules that are not loaded; tells which symbols (by index) need not be there before.
   * Rejects `module-not-loaded`, when all would have to wait and `late` does not say so, or when other code of the patch needs one
   * of them; `parts-connected`.
   */
  expectWaits(patch: Patch, late: boolean): (symbolIndex: number) => boolean {
    // What looks up places that may fault is there for the sake of other code.
    const changed = patch.manifest.objects.filter(({ functions }) =>
      functions.some(({ newSymbol }) => newSymbol !== EXCEPTION_SEARCH),
    );
    const absent = changed.filter(({ name }) => !this.#objects.isLoaded(name));
    const [first] = absent;
    if (first === undefined) return () => false;
    if (absent.length === changed.length && !late) throw notLoaded(first.name);
    const waiting = new Set(absent.flatMap((object) => [...sectionsFor(patch, object)]));
    const needed = new Set(
      patch.sections.flatMap(({ relocations }, index) =>
        waiting.has(index) ? [] : relocations.map(({ symbolIndex }) => symbolIndex),
      ),
    );
    for (const index of needed) {
      const symbol = patch.symbols[index];
      const isAbsent = symbol?.kind === 'external' && absent.some(({ name }) => name === symbol.object);
      if (isAbsent) throw notLoaded(symbol.object);
    }
    return (index) => !needed.has(index);
  }

  /** What can't be resolved before its module is there is nowhere: nothing leads to the code that refers to it. */
  withPlaceholders(patch: Patch, source: SymbolSource): SymbolSource {
    if (patch.manifest.objects.every(({ name }) => this.#objects.isLoaded(name))) return source;
    const nowhere = this.#session.kernel.expect('_etext');
    return { ...source, resolve: (symbol) => source.resolve(symbol) ?? nowhere };
  }

  /** What the modules of a registered patch are now. Stops the guest. */
  async states(
    patch: RegisteredKernelPatch,
  ): Promise<readonly (KernelPatchModule & { readonly state: ModuleState })[]> {
    const gone = await this.#findLeft(patch);
    const states: (KernelPatchModule & { state: ModuleState })[] = [];
    for (const module of patch.objects ?? []) {
      const isPending = pendingModules(patch).includes(module) || gone.includes(module.name);
      states.push({ ...module, state: isPending ? await this.#stateOfPending(module) : 'patched' });
    }
    return states;
  }

  async #stateOfPending({ name, buildId }: KernelPatchModule): Promise<ModuleState> {
    const { memory, layout, modules } = this.#session;
    const module = modules.find((each) => each.name === name);
    if (module === undefined) return 'pending';
    await this.#session.stop();
    const sections = await readModuleSections(memory, layout, module.structAddress);
    const found = await readModuleBuildId(memory, sections);
    this.#session.breathe();
    return found === buildId ? 'unpatched' : 'unfit';
  }

  /** The modules that a patch was brought to, and that are still there. */
  async presentOf({ modules }: RegisteredKernelPatch): Promise<readonly string[]> {
    const { memory, kernel, layout } = this.#session;
    const watch = new ModuleWatch(memory, kernel, layout);
    const present: string[] = [];
    for (const place of modules) {
      await this.#session.stop();
      if (await watch.isLoaded(place)) present.push(place.name);
      this.#session.breathe();
    }
    return present;
  }

  /** Brings the registry in line with the modules that are there; says which have gone. */
  async settle(): Promise<readonly LeftModule[]> {
    const left: LeftModule[] = [];
    for (const patch of enabledPatches(this.#patcher.registry))
      for (const object of await this.#findLeft(patch)) left.push({ patch, object });
    // What would have had its turn as they went has nobody to run it any more.
    const unfinished = await this.#findLeftArrivals();
    for (const { patch, object } of [...left, ...unfinished])
      await (await this.#patcher.callbacksOfModule(patch, object))?.setStage('none');
    if (left.length > 0) await this.#patcher.save(withoutLeftModules(this.#patcher.registry, left));
    for (const { patch, object } of unfinished) await this.forgetArrivals(patch, [object]);
    return left;
  }

  /** Modules that a watch had begun to bring a patch to when it ended, and that have gone since. */
  async #findLeftArrivals(): Promise<readonly LeftModule[]> {
    const { memory, kernel, layout } = this.#session;
    const watch = new ModuleWatch(memory, kernel, layout);
    const left: LeftModule[] = [];
    for (const patch of enabledPatches(this.#patcher.registry))
      for (const instance of patch.arriving ?? []) {
        await this.#session.stop();
        if (!(await watch.isSame(instance))) left.push({ patch, object: instance.name });
        this.#session.breathe();
      }
    return left;
  }

  /**
   * Notes that a patch is being brought to a module that is being loaded, before its first callback runs: a later run then knows whom it
   * has run for. In a stopped guest.
   */
  async noteArrival({ id }: RegisteredKernelPatch, name: string): Promise<void> {
    const { memory, kernel, layout } = this.#session;
    const module = this.#session.modules.find((each) => each.name === name);
    if (module === undefined) throw new Error(`the module ${name} was not read`);
    const instance = await new ModuleWatch(memory, kernel, layout).instanceAt(placeOf(module));
    await this.#change(id, (patch) => {
      const before = withoutArrivals(patch, [name]);
      return { ...before, arriving: [...(before.arriving ?? []), instance] };
    });
  }

  /** The modules were not brought to the patch after all, and nothing is left of what was done for it. */
  async forgetArrivals({ id }: RegisteredKernelPatch, objects: readonly string[]): Promise<void> {
    await this.#change(id, (patch) => withoutArrivals(patch, objects));
  }

  async #change(id: string, change: (patch: RegisteredKernelPatch) => RegisteredKernelPatch): Promise<void> {
    const { registry } = this.#patcher;
    const patches = registry.patches.map((each) => (each.id === id ? change(each) : each));
    await this.#patcher.save({ ...registry, patches });
  }

  /** Modules that were unloaded, or loaded again where they lay: no redirect of the patch is left in them. */
  async #findLeft(patch: RegisteredKernelPatch): Promise<readonly string[]> {
    const entries = new KernelEntries(this.#session);
    const versions = this.#patcher.versionsOf(patch);
    const gone: string[] = [];
    for (const { name } of patch.modules) {
      let isThere = false;
      for (const fn of patch.functions.filter(({ object }) => object === name))
        isThere ||= !/^module(?:Unloaded|Reloaded)$/.test(await entries.state(versions, fn));
      if (!isThere) gone.push(name);
    }
    return gone;
  }

  /** Rejects `transition-in-progress` for a patch that is just being replaced by another. */
  expectStays(patch: RegisteredKernelPatch): void {
    const { patches, transition } = this.#patcher.registry;
    if (transition === undefined || transition.patchId === patch.id) return;
    if (patches.some(({ id, replaces }) => id === transition.patchId && replaces === true))
      throw new LivegraftError('transition-in-progress', `patch ${patch.name} is being replaced`);
  }

  /**
   * Writes the part of a registered patch for modules that came later. Nothing leads to it yet, and the registry does not know of
   * it: the record that is returned does.
   */
  async prepare(
    patch: RegisteredKernelPatch,
    content: Patch,
    objects: readonly string[],
  ): Promise<RegisteredKernelPatch> {
    const modules = content.manifest.objects.filter(({ name }) => objects.includes(name));
    for (const module of modules) await this.#objects.expectModule(module);
    this.expectOlderFirst(patch.id, objects);
    const planned = await this.#patcher.plan(content, false, objects);
    const layout = layoutForKernel(content, patch.slots ?? 0);
    if (layout.sizeBytes !== patch.memory.sizeBytes) throw new Error('the patch has another layout');
    const sections = new Set(modules.flatMap((module) => [...sectionsFor(content, module)]));
    const source = this.#patcher.symbols(planned);
    expectResolved(content, sections, source);
    const { address } = patch.memory;
    const nowhere = this.#session.kernel.expect('_etext');
    const image = await linkForKernel(
      this.#session,
      content,
      layout,
      address,
      { ...source, resolve: (symbol) => source.resolve(symbol) ?? nowhere },
      this.#arch.redirector,
    );
    for (const { offset, sizeBytes } of partsOfImage(content, layout, sections)) {
      await this.#session.sliced.writeMemory(
        address + offset,
        image.bytes.subarray(offset, offset + sizeBytes),
      );
    }
    return {
      ...withoutArrivals(patch, objects),
      functions: [
        ...patch.functions,
        ...planned.functions.map((fn) => describeFunction(fn, image, redirectAt(layout, address, fn.slot))),
      ],
      modules: [
        ...patch.modules,
        ...this.#session.modules.filter(({ name }) => objects.includes(name)).map(placeOf),
      ],
    };
  }

  /**
   * The version that an older patch has for a module comes first, since those of later ones lie above it. Rejects `older-pending`.
   * `id`: a registered patch, or one that will be the newest.
   */
  expectOlderFirst(id: string, objects: readonly string[]): void {
    const enabled = enabledPatches(this.#patcher.registry);
    const index = enabled.findIndex((each) => each.id === id);
    for (const older of index < 0 ? enabled : enabled.slice(0, index)) {
      const object = pendingModules(older).find(({ name }) => objects.includes(name));
      if (object === undefined) continue;
      throw new LivegraftError(
        'older-pending',
        `${object.name} has been loaded, and patch ${older.name}, which is older, has not been applied to it yet`,
        {
          remedy: `apply ${older.name} again first (${older.path}), which completes it, or revert it`,
          details: { object: object.name, patch: older.id },
        },
      );
    }
  }

  /**
   * Brings a patch to a module that is being loaded, and whose init code has not run: no task is inside. In a guest that stands
   * still all through it. `record` is what {@link prepare} came to. The entries are final at once; while the transition of the patch
   * itself runs, they choose, and become final with it: says which. They and the registry change together.
   */
  async arrive(record: RegisteredKernelPatch, object: string): Promise<'final' | 'choosing'> {
    const patcher = this.#patcher;
    await patcher.watch.expectAlive();
    const part = restrictToModules(record, [object]);
    // Another module may have come since the record was made, while a callback ran.
    const arrived = (patch: RegisteredKernelPatch): RegisteredKernelPatch => ({
      ...withoutArrivals(patch, [object]),
      functions: [...patch.functions, ...part.functions],
      modules: [...patch.modules, ...part.modules],
    });
    const registry: KernelRegistry = {
      ...patcher.registry,
      patches: patcher.registry.patches.map((each) => (each.id === record.id ? arrived(each) : each)),
    };
    const { transition } = registry;
    const isChoosing = transition?.patchId === record.id && transition.objects === undefined;
    if (isChoosing) this.#session.useStateField(transition);
    const versions = patcher.versionsOf(
      registry.patches.find(({ id }) => id === record.id) ?? record,
      registry,
    );
    const entries: GuestChange[] = [];
    for (const fn of part.functions) {
      const code = isChoosing ? encodeJump(fn.site, fn.trampoline) : versions.finalBytes(fn, 'patch');
      if (isChoosing) {
        const chooser = encodeChooser(this.#session, versions, transition, fn);
        await this.#session.memory.writeCode(fn.trampoline, chooser);
      }
      entries.push({ kind: 'write', address: fn.site, bytes: code });
    }
    await patcher.saveWith(registry, entries);
    return isChoosing ? 'choosing' : 'final';
  }

  /** A module is about to be unloaded, with all redirects in it. `structAddress`: its `struct module`. */
  async leave(structAddress: number): Promise<readonly LeftModule[]> {
    const left = this.#patcher.registry.patches.flatMap((patch): LeftModule[] =>
      patch.modules
        .filter((place) => place.structAddress === structAddress)
        .map(({ name }) => ({ patch, object: name })),
    );
    this.#session.dropModule(structAddress);
    for (const patch of this.#patcher.registry.patches) {
      const gone = patch.arriving?.filter((instance) => instance.structAddress === structAddress) ?? [];
      if (gone.length > 0)
        await this.forgetArrivals(
          patch,
          gone.map(({ name }) => name),
        );
    }
    if (left.length > 0) await this.#patcher.save(withoutLeftModules(this.#patcher.registry, left));
    return left.filter(({ patch }) => patch.state !== 'reverted');
  }
}

function expectResolved(content: Patch, sections: ReadonlySet<number>, source: SymbolSource): void {
  const missing = new Set<string>();
  for (const index of sections) {
    for (const { symbolIndex } of content.sections[index]?.relocations ?? []) {
      const symbol = content.symbols[symbolIndex];
      if (symbol?.kind === 'external' && source.resolve(symbol) === undefined) missing.add(symbol.name);
    }
  }
  if (missing.size === 0) return;
  const names = [...missing].join(', ');
  throw new LivegraftError('symbol-unresolved', `the running kernel has no ${names}`, {
    remedy: 'load the module that defines it, or build the patch for this kernel',
    details: { symbols: names },
  });
}

/** What belongs to some sections of an image: they, and the stubs and table entries that they use. */
function partsOfImage(
  { sections, symbols }: Patch,
  layout: PatchLayout,
  chosen: ReadonlySet<number>,
): readonly { readonly offset: number; readonly sizeBytes: number }[] {
  const parts = new Map<number, number>();
  for (const index of chosen) {
    const section = sections[index];
    const offset = layout.sectionOffsets[index];
    if (section === undefined || offset === undefined) continue;
    parts.set(offset, section.sizeBytes);
    for (const { type, symbolIndex } of section.relocations) {
      const stub = layout.stubOffsets.get(symbolIndex);
      if (stub !== undefined) parts.set(stub, STUB_BYTES);
      const kind = gotKindOf(type);
      const got = kind && layout.gotOffsets.get(gotKey(kind, symbolIndex));
      if (got !== undefined && symbols[symbolIndex] !== undefined) parts.set(got, GOT_ENTRY_BYTES);
    }
  }
  return [...parts]
    .map(([offset, sizeBytes]) => ({ offset, sizeBytes }))
    .filter((part) => part.sizeBytes > 0);
}
