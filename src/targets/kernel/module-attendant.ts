import { LivegraftError } from '../../base/errors.js';
import type { CallbackKind, CallbackMoment } from '../../engine/callbacks.js';
import { LEAVING_MOMENTS } from '../../engine/objects.js';
import type { Patch } from '../../patch/content.js';
import type { Borrowed } from './guest-calls.js';
import { StructReader } from './kernel-layout.js';
import { modulePlaces } from './kernel-modules.js';
import { type LeftModule, pendingModules } from './kernel-patch-modules.js';
import type { KernelPatcher } from './kernel-patcher.js';
import type { RegisteredKernelPatch } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { enabledPatches } from './kernel-versions.js';
import type { LoaderEvent } from './module-loader.js';

/** Whoever is told what becomes of modules. */
export interface AttendantHost {
  /** The file of a patch; undefined when it is not there any more. */
  contentOf(patch: RegisteredKernelPatch): Patch | undefined;
  tell(change: 'patched' | 'refused', patch: RegisteredKernelPatch, module: string, detail?: string): void;
  tellLeft(left: readonly LeftModule[]): void;
  tellCallback(module: string, callback: CallbackKind): void;
}

/** A module that is being loaded. */
interface Arrival {
  readonly name: string;
  /** By patch, the record that it will have, once its code for the module lies in memory. */
  readonly prepared: Map<string, RegisteredKernelPatch>;
  /** Patches that it runs without, and those whose pre-patch callback is taken back before it does. */
  readonly refused: Map<string, 'refused' | 'takenBack'>;
  /** Patches that choose by task: their transition runs the post-patch callback. */
  readonly choosing: Set<string>;
}

/**
 * Brings patches to modules as a kernel loads them, and runs their callbacks where its own livepatch does (klp_module_coming,
 * klp_module_going): in the task that loads or unloads the module. That is led away to each callback and comes back to where it stood,
 * when {@link attend} is called again and goes on behind it.
 */
export class ModuleAttendant {
  readonly #session: KernelSession;
  readonly #patcher: KernelPatcher;
  readonly #host: AttendantHost;
  readonly #arrivals = new Map<number, Arrival>();

  constructor(session: KernelSession, patcher: KernelPatcher, host: AttendantHost) {
    this.#session = session;
    this.#patcher = patcher;
    this.#host = host;
  }

  /** In a guest that stands still, `task` where the event says. */
  async attend({ kind, structAddress }: LoaderEvent, task: Borrowed): Promise<'led' | 'done'> {
    return kind === 'coming' ? this.#comes(structAddress, task) : this.#goes(structAddress, task);
  }

  async #comes(structAddress: number, task: Borrowed): Promise<'led' | 'done'> {
    const arrival = this.#arrivals.get(structAddress) ?? (await this.#begin(structAddress));
    const { name, refused } = arrival;
    // The oldest first: later ones lie above it.
    for (const patch of enabledPatches(this.#patcher.registry)) {
      if (patch.objects?.some((object) => object.name === name) !== true) continue;
      if (refused.get(patch.id) === 'refused') continue;
      const step = await this.#bring(patch, arrival, task);
      if (step === 'led') return step;
    }
    this.#arrivals.delete(structAddress);
    return 'done';
  }

  async #begin(structAddress: number): Promise<Arrival> {
    const { memory, layout } = this.#session;
    const name = await new StructReader(memory).text(structAddress, modulePlaces(layout).name);
    const arrival = { name, prepared: new Map(), refused: new Map(), choosing: new Set<string>() };
    const waiting = enabledPatches(this.#patcher.registry).filter((patch) =>
      pendingModules(patch).some((module) => module.name === name),
    );
    if (waiting.length > 0) await this.#session.addModule(structAddress);
    // What an earlier module of the name came to is nothing to this one.
    for (const patch of waiting) await (await this.#patcher.callbacksOfModule(patch, name))?.setStage('none');
    this.#arrivals.set(structAddress, arrival);
    return arrival;
  }

  /** Goes on with one patch. Errors that are no end of the guest are told: the module then runs without the patch. */
  async #bring(patch: RegisteredKernelPatch, arrival: Arrival, task: Borrowed): Promise<'led' | 'done'> {
    const { late } = this.#patcher;
    const { name, prepared, refused, choosing } = arrival;
    try {
      if (refused.get(patch.id) === 'takenBack') return await this.#takeBack(patch, arrival, task);
      if (pendingModules(patch).some((module) => module.name === name)) {
        const content = this.#host.contentOf(patch);
        if (content === undefined) throw new LivegraftError('patch-unreadable', 'its file is not there');
        late.expectStays(patch);
        const record = prepared.get(patch.id) ?? (await late.prepare(patch, content, [name]));
        if (!prepared.has(patch.id) && patch.callbacks?.some(({ object }) => object === name))
          await late.noteArrival(patch, name);
        prepared.set(patch.id, record);
        if ((await this.#pass(patch, name, 'enable', task)) === 'led') return 'led';
        if ((await late.arrive(record, name)) === 'choosing') choosing.add(patch.id);
        this.#host.tell('patched', patch, name);
      }
      return choosing.has(patch.id) ? 'done' : await this.#pass(patch, name, 'enabled', task);
    } catch (error) {
      if (!(error instanceof LivegraftError) || error.code === 'target-gone') throw error;
      this.#host.tell('refused', patch, name, error.message);
      return this.#takeBack(patch, arrival, task);
    }
  }

  /** What its pre-patch callback did, its post-unpatch one undoes. */
  async #takeBack(
    patch: RegisteredKernelPatch,
    { name, refused }: Arrival,
    task: Borrowed,
  ): Promise<'led' | 'done'> {
    refused.set(patch.id, 'takenBack');
    const step = await this.#pass(patch, name, 'disabled', task);
    if (step === 'led') return step;
    refused.set(patch.id, 'refused');
    if (patch.arriving?.some((module) => module.name === name))
      await this.#patcher.late.forgetArrivals(patch, [name]);
    return step;
  }

  async #goes(structAddress: number, task: Borrowed): Promise<'led' | 'done'> {
    this.#arrivals.delete(structAddress);
    for (const patch of enabledPatches(this.#patcher.registry)) {
      // What an earlier watch had begun to bring it to, and could not complete, is left as if it had none, too.
      const places = [...patch.modules, ...(patch.arriving ?? [])];
      const module = places.find((place) => place.structAddress === structAddress)?.name;
      if (module === undefined) continue;
      for (const moment of LEAVING_MOMENTS)
        if ((await this.#pass(patch, module, moment, task)) === 'led') return 'led';
    }
    this.#host.tellLeft(await this.#patcher.late.leave(structAddress));
    return 'done';
  }

  async #pass(
    patch: RegisteredKernelPatch,
    module: string,
    moment: CallbackMoment,
    task: Borrowed,
  ): Promise<'led' | 'done'> {
    const callbacks = await this.#patcher.callbacksOfModule(patch, module);
    const step = await callbacks?.passWith(moment, task, (kind) => this.#host.tellCallback(module, kind));
    return step === 'led' ? 'led' : 'done';
  }
}
