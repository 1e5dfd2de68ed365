import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import { allowOptimization, collectGarbage } from '../process/own-runtime.js';
import { Evidence } from './evidence.js';
import { GdbClient } from './gdb-client.js';
import type { GdbEndpoint } from './gdb-connection.js';
import type { MemoryPiece } from './gdb-memory.js';
import type { GuestGuard } from './guest-guard.js';
import { GuestMemory, type MemorySource } from './guest-memory.js';
import { GuestSlices } from './guest-slices.js';
import { explainHiddenKernel, findFeatures, findSight } from './hidden-kernel.js';
import { KernelLayout } from './kernel-layout.js';
import { type KernelModule, listModules, readModule, readModules } from './kernel-modules.js';
import { readKernelProofs } from './kernel-proofs.js';
import type { RegisteredKernelPatch } from './kernel-registry.js';
import { KernelStacks } from './kernel-stacks.js';
import { TaskReader } from './kernel-tasks.js';
import { rehearseProtocol } from './protocol-rehearsal.js';
import { KernelAddresses, locateKernel } from './running-kernel.js';
import { SharedMemory } from './shared-memory.js';
import { TaskScan } from './task-scan.js';

export interface KernelSessionOptions {
  readonly endpoint: GdbEndpoint;
  readonly image: KernelImage;
  readonly arch: Architecture;
  /** How long one answer of the stub may take. */
  readonly timeoutMs: number;
  /** The file that QEMU shares as the guest's memory, where it does. */
  readonly memoryFile?: string | undefined;
  /** Started for this session: it ends with it. */
  readonly guard?: GuestGuard | undefined;
}

const REHEARSAL_WALKS = 200;
const REHEARSAL_ROUNDS = 4;

/**
 * A running kernel whose image was held against it. The guest is stopped in short slices: {@link stop} begins one, and it
 * ends at a call of {@link breathe} once it has lasted long enough. What must be seen or done together lies between.
 */
export class KernelSession {
  readonly arch: Architecture;
  readonly client: GdbClient;
  readonly kernel: KernelAddresses;
  readonly layout: KernelLayout;
  readonly memory: GuestMemory;
  readonly tasks: TaskReader;
  readonly stacks: KernelStacks;
  /** Memory through the protocol, in slices of its own: for code, and what nobody else touches meanwhile. */
  readonly sliced: MemorySource;
  /** For data that nobody else touches meanwhile: without a stop where that is possible. */
  readonly data: MemorySource;
  readonly guard: GuestGuard | undefined;
  readonly #slices: GuestSlices;
  #modules: readonly KernelModule[];
  #scan: TaskScan | undefined;
  readonly #shared: SharedMemory | undefined;
  /** Of the running kernel's image. */
  readonly #text: { readonly start: number; readonly end: number };

  private constructor(parts: {
    readonly arch: Architecture;
    readonly client: GdbClient;
    readonly slices: GuestSlices;
    readonly kernel: KernelAddresses;
    readonly layout: KernelLayout;
    readonly memory: GuestMemory;
    readonly shared: SharedMemory | undefined;
    readonly modules: readonly KernelModule[];
    readonly isDisproved: (address: number) => boolean;
    readonly guard: GuestGuard | undefined;
  }) {
    const { arch, client, slices, kernel, layout, memory, shared, modules, isDisproved } = parts;
    this.arch = arch;
    this.client = client;
    this.guard = parts.guard;
    this.kernel = kernel;
    this.layout = layout;
    this.memory = memory;
    this.#modules = modules;
    this.sliced = slices;
    this.data = shared ?? slices;
    this.#slices = slices;
    this.#shared = shared;
    this.#text = { start: kernel.expect('_text'), end: kernel.expect('_etext') };
    this.tasks = new TaskReader(client, memory, kernel, layout);
    this.stacks = new KernelStacks(arch, memory, kernel, layout, modules, isDisproved);
  }

  /** Rejects with a LivegraftError, and the guest goes on, when it can't be reached or runs another kernel. */
  static async open(options: KernelSessionOptions): Promise<KernelSession> {
    const { arch, endpoint, image, timeoutMs, memoryFile, guard } = options;
    const layout = new KernelLayout(image.btf, image.source);
    const features = findFeatures(layout);
    await rehearseProtocol();
    collectGarbage();
    allowOptimization(false);
    const client = await GdbClient.connect(endpoint, { timeoutMs, guard });
    let shared: SharedMemory | undefined;
    let found: KernelAddresses | undefined;
    try {
      const slices = new GuestSlices(client);
      client.phase = 'find the kernel';
      const kernel = new KernelAddresses(image, await locateKernel(client, slices, image));
      found = kernel;
      slices.sight = await findSight(slices, kernel, features);
      if (memoryFile !== undefined) shared = await SharedMemory.open(memoryFile, client, slices, kernel);
      const memory = new GuestMemory(shared ?? client, client);
      client.onRun = () => memory.forget();
      slices.resume();
      client.phase = 'read modules';
      const modules = await readModules(memory, shared ?? slices, slices, kernel, layout);
      // What comes now takes a while, and needs little or nothing of the guest.
      slices.resume();
      const isDisproved = await readKernelProofs(memory, slices, kernel, layout, modules);
      slices.resume();
      allowOptimization(true);
      const session = new KernelSession({
        arch,
        client,
        slices,
        kernel,
        layout,
        memory,
        shared,
        modules,
        isDisproved,
        guard,
      });
      allowOptimization(false);
      // What was read is there to stay: a collection that begins later would go on in stops, step by step.
      collectGarbage('major');
      return session;
    } catch (error) {
      const told = found && (await explainHiddenKernel(client, found.expect('init_task'), error));
      await client.detach();
      shared?.close();
      throw told ?? error;
    }
  }

  /** Does something with the guest; where that fails because the kernel is hidden from the stub, says so in place of its error. */
  async explain<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw await explainHiddenKernel(this.client, this.kernel.expect('init_task'), error);
    }
  }

  get scan(): TaskScan {
    this.#scan ??= this.#createScan();
    return this.#scan;
  }

  /** See {@link TaskReader.useStateField}. */
  useStateField(record: { readonly stateOffset?: number | undefined }): void {
    this.tasks.useStateField(record);
    this.#scan = undefined;
  }

  #createScan(): TaskScan {
    const [memory, shared, slices] = [this.memory, this.#shared, this.#slices];
    return new TaskScan(
      {
        attempt: async (attempt) => {
          if (shared !== undefined)
            return attempt((address, sizeBytes) => shared.readNow(address, sizeBytes));
          await slices.stop();
          const result = await memory.settle(() =>
            attempt((address, sizeBytes) => memory.readNow(address, sizeBytes)),
          );
          slices.breathe();
          return result;
        },
        rest: async () => {
          slices.resume();
          await slices.run();
        },
      },
      this.layout,
      this.kernel.expect('init_task'),
      this.tasks.stateField,
    );
  }

  /** Those that were loaded when the session was opened, and those that came and went since as far as it was told. */
  get modules(): readonly KernelModule[] {
    return this.#modules;
  }

  /** Reads a module that was not there before, by its `struct module`. Stacks are walked as if it were not there. */
  async addModule(structAddress: number): Promise<KernelModule> {
    const { memory, data, layout } = this;
    this.dropModule(structAddress);
    const module = await readModule(memory, data, this, layout, structAddress);
    this.#modules = [...this.#modules, module];
    return module;
  }

  /** Reads those that came since, and drops those that have gone. */
  async refreshModules(): Promise<void> {
    await this.stop();
    const there = await listModules(this.memory, this.kernel, this.layout);
    this.breathe();
    for (const { structAddress } of this.#modules)
      if (!there.includes(structAddress)) this.dropModule(structAddress);
    for (const address of there)
      if (this.#modules.every(({ structAddress }) => structAddress !== address))
        await this.addModule(address);
  }

  dropModule(structAddress: number): void {
    this.#modules = this.#modules.filter((module) => module.structAddress !== structAddress);
  }

  /** See {@link GuestSlices.hold}. */
  async hold<T>(work: () => Promise<T>): Promise<T> {
    return this.#slices.hold(work);
  }

  /** Stops the guest, if it runs; not before it has run for a while. */
  async stop(): Promise<void> {
    await this.#slices.stop();
  }

  /** The same, and reads pieces that each fit a packet in that stop. */
  async stopAndRead(pieces: readonly MemoryPiece[]): Promise<readonly Uint8Array[]> {
    return this.#slices.stopAndRead(pieces);
  }

  /** Lets the guest go on if it has stood still for long enough. */
  breathe(): void {
    this.#slices.breathe();
  }

  /** Behind what had to be done in one stop: the guest goes on, at once where the next thing begins without one. */
  endStep(): void {
    if (this.#shared === undefined) this.#slices.breathe();
    else this.#slices.resume();
  }

  /** Whether {@link look} works. */
  get canLook(): boolean {
    return this.#shared !== undefined;
  }

  /**
   * Does something that reads the memory of the guest, which may run, by {@link memory} alone, and that has no effects. What it
   * found is true in a later stop in which its evidence still holds; undefined when the guest changed under it.
   */
  async look<T>(
    use: () => Promise<T>,
  ): Promise<{ readonly found: T; readonly evidence: Evidence } | undefined> {
    if (this.#shared === undefined)
      throw new Error('a running guest can not be looked at through the protocol');
    this.memory.forget();
    const evidence = new Evidence(this.memory, this.#shared, this.#text);
    try {
      return { found: await evidence.gather(use), evidence };
    } catch (error) {
      if (isChanging(error)) return undefined;
      throw error;
    }
  }

  resume(): void {
    this.#slices.resume();
  }

  /**
   * Walks stacks of the running guest where that is possible, and forgets what comes of it: code that has run before is
   * faster, and the tables that it needs are there, when the guest stands still.
   */
  async rehearse(): Promise<void> {
    if (this.#shared === undefined) return;
    this.resume();
    allowOptimization(true);
    let walks = 0;
    try {
      const cpus = await this.tasks.cpusAsOfLate().catch(() => []);
      for await (const task of this.scan.tasks([])) {
        const seen = await this.look(async () => {
          const found = await this.tasks.findAgain(task);
          return found && (await this.stacks.walk(found, cpus));
        });
        for (let round = 0; round < REHEARSAL_ROUNDS; round++) seen?.evidence.holds();
        if (++walks >= REHEARSAL_WALKS) break;
      }
    } catch (error) {
      if (!isChanging(error)) throw error;
    } finally {
      this.memory.forget();
      allowOptimization(false);
      collectGarbage();
    }
  }

  /** Code that livegraft has put into the guest, so that walks know it. */
  async usePatches(patches: readonly RegisteredKernelPatch[]): Promise<void> {
    await this.stacks.usePatches(patches, this.data);
  }

  /** How code of the kernel finds the current task's state: a per-CPU variable, and an offset behind what it points to. */
  get currentTask(): { readonly currentTask: number; readonly stateOffset: number } {
    return { currentTask: this.tasks.currentVariable, stateOffset: this.tasks.stateField.offset };
  }

  /** Lets the guest go on. */
  async close(): Promise<void> {
    allowOptimization(true);
    await this.client.detach();
    this.#shared?.close();
  }
}

/** What reading a running guest may come to. */
function isChanging(error: unknown): boolean {
  return error instanceof LivegraftError && /^guest-(memory|inconsistent)$/.test(error.code);
}
