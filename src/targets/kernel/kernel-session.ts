import type { Architecture } from '../../arch/architecture.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import { GdbClient } from './gdb-client.js';
import type { GdbEndpoint } from './gdb-connection.js';
import { GuestMemory } from './guest-memory.js';
import { KernelLayout } from './kernel-layout.js';
import { type KernelModule, readModules } from './kernel-modules.js';
import { readKernelProofs } from './kernel-proofs.js';
import type { RegisteredKernelPatch } from './kernel-registry.js';
import { KernelStacks } from './kernel-stacks.js';
import { TaskReader } from './kernel-tasks.js';
import { KernelAddresses, locateKernel } from './running-kernel.js';
import { SharedMemory } from './shared-memory.js';

export interface KernelSessionOptions {
  readonly endpoint: GdbEndpoint;
  readonly image: KernelImage;
  readonly arch: Architecture;
  /** How long one answer of the stub may take. */
  readonly timeoutMs: number;
  /** The file that QEMU shares as the guest's memory, where it does. */
  readonly memoryFile?: string | undefined;
}

/** A running kernel whose image was held against it. The guest stands still from {@link open} to {@link close}. */
export class KernelSession {
  readonly client: GdbClient;
  readonly kernel: KernelAddresses;
  readonly memory: GuestMemory;
  readonly modules: readonly KernelModule[];
  readonly tasks: TaskReader;
  readonly stacks: KernelStacks;
  readonly #shared: SharedMemory | undefined;

  private constructor(
    options: KernelSessionOptions,
    client: GdbClient,
    kernel: KernelAddresses,
    layout: KernelLayout,
    memory: GuestMemory,
    shared: SharedMemory | undefined,
    modules: readonly KernelModule[],
    isDisproved: (address: number) => boolean,
  ) {
    this.#shared = shared;
    this.client = client;
    this.kernel = kernel;
    this.memory = memory;
    this.modules = modules;
    this.tasks = new TaskReader(client, memory, kernel, layout);
    this.stacks = new KernelStacks(options.arch, memory, kernel, layout, modules, isDisproved);
  }

  /** Rejects with a LivegraftError, and the guest goes on, when it can't be reached or runs another kernel. */
  static async open(options: KernelSessionOptions): Promise<KernelSession> {
    const { endpoint, image, timeoutMs } = options;
    const client = await GdbClient.connect(endpoint, { timeoutMs });
    let shared: SharedMemory | undefined;
    try {
      const kernel = new KernelAddresses(image, await locateKernel(client, image));
      const layout = new KernelLayout(image.btf, image.source);
      const { memoryFile } = options;
      shared = memoryFile === undefined ? undefined : await SharedMemory.open(memoryFile, client, kernel);
      const memory = new GuestMemory(shared ?? client, client);
      const modules = await readModules(memory, kernel, layout);
      const isDisproved = await readKernelProofs(memory, kernel, layout, modules);
      return new KernelSession(options, client, kernel, layout, memory, shared, modules, isDisproved);
    } catch (error) {
      shared?.close();
      await client.detach();
      throw error;
    }
  }

  /** Code that livegraft has put into the guest, so that walks know it. */
  async usePatches(patches: readonly RegisteredKernelPatch[]): Promise<void> {
    await this.stacks.usePatches(patches);
  }

  /** How code of the kernel finds the current task's state: a per-CPU variable, and an offset behind what it points to. */
  get currentTask(): { readonly currentTask: number; readonly stateOffset: number } {
    return { currentTask: this.tasks.currentVariable, stateOffset: this.tasks.patchStateOffset };
  }

  /** Lets the guest go on. */
  async close(): Promise<void> {
    await this.client.detach();
    this.#shared?.close();
  }
}
