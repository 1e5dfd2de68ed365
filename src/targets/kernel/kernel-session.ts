import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import { GdbClient } from './gdb-client.js';
import type { GdbEndpoint } from './gdb-connection.js';
import type { GuestGuard } from './guest-guard.js';
import { GuestMemory, type MemorySource } from './guest-memory.js';
import { GuestSlices } from './guest-slices.js';
import { KernelLayout } from './kernel-layout.js';
import { type KernelModule, readModules } from './kernel-modules.js';
import { readKernelProofs } from './kernel-proofs.js';
import type { RegisteredKernelPatch } from './kernel-registry.js';
import { KernelStacks } from './kernel-stacks.js';
import { TaskReader } from './kernel-tasks.js';
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
  readonly modules: readonly KernelModule[];
  readonly tasks: TaskReader;
  readonly stacks: KernelStacks;
  /** Memory through the protocol, in slices of its own: for what nobody else touches meanwhile. */
  readonly sliced: MemorySource;
  readonly scan: TaskScan;
  readonly guard: GuestGuard | undefined;
  readonly #slices: GuestSlices;
  readonly #shared: SharedMemory | undefined;

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
    this.modules = modules;
    this.sliced = slices;
    this.#slices = slices;
    this.#shared = shared;
    this.tasks = new TaskReader(client, memory, kernel, layout);
    this.stacks = new KernelStacks(arch, memory, kernel, layout, modules, isDisproved);
    this.scan = new TaskScan(
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
      layout,
      kernel.expect('init_task'),
      this.tasks.stateField,
    );
  }

  /** Rejects with a LivegraftError, and the guest goes on, when it can't be reached or runs another kernel. */
  static async open(options: KernelSessionOptions): Promise<KernelSession> {
    const { arch, endpoint, image, timeoutMs, memoryFile, guard } = options;
    const client = await GdbClient.connect(endpoint, { timeoutMs, guard });
    let shared: SharedMemory | undefined;
    try {
      const slices = new GuestSlices(client);
      const kernel = new KernelAddresses(image, await locateKernel(client, slices, image));
      if (memoryFile !== undefined) shared = await SharedMemory.open(memoryFile, client, slices, kernel);
      const memory = new GuestMemory(shared ?? client, client);
      client.onRun = () => memory.forget();
      slices.resume();
      const layout = new KernelLayout(image.btf, image.source);
      const modules = await readModules(memory, shared ?? slices, slices, kernel, layout);
      const isDisproved = await readKernelProofs(memory, slices, kernel, layout, modules);
      // What comes now takes a while, and needs nothing of the guest.
      slices.resume();
      return new KernelSession({
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
    } catch (error) {
      await client.detach();
      shared?.close();
      throw error;
    }
  }

  /** Stops the guest, if it runs; not before it has run for a while. */
  async stop(): Promise<void> {
    await this.#slices.stop();
  }

  /** Lets the guest go on if it has stood still for long enough. */
  breathe(): void {
    this.#slices.breathe();
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
    let walks = 0;
    try {
      for await (const { address, isIdle } of this.scan.tasks([])) {
        this.memory.forget();
        await this.stacks.walk(await this.tasks.task(address, isIdle), []);
        if (++walks >= REHEARSAL_WALKS) break;
      }
    } catch (error) {
      if (!(error instanceof LivegraftError) || !/^guest-(memory|inconsistent)$/.test(error.code))
        throw error;
    } finally {
      this.memory.forget();
    }
  }

  /** Code that livegraft has put into the guest, so that walks know it. */
  async usePatches(patches: readonly RegisteredKernelPatch[]): Promise<void> {
    await this.#slices.stop();
    await this.stacks.usePatches(patches);
    this.#slices.breathe();
  }

  /** How code of the kernel finds the current task's state: a per-CPU variable, and an offset behind what it points to. */
  get currentTask(): { readonly currentTask: number; readonly stateOffset: number } {
    return { currentTask: this.tasks.currentVariable, stateOffset: this.tasks.stateField.offset };
  }

  /** Lets the guest go on. */
  async close(): Promise<void> {
    await this.client.detach();
    this.#shared?.close();
  }
}
