import { type Borrowed, guestEnded } from './guest-calls.js';
import type { KernelSession } from './kernel-session.js';
import type { KernelAddresses } from './running-kernel.js';

/** What the kernel's module loader does, told at the first instruction of the function that does it. */
export interface LoaderEvent {
  /**
   * `coming`: all of the module is in memory, relocated, listed; its init code has not run. Setters of its parameters may have.
   * `going`: its exit code has run, and its memory is about to be freed.
   */
  readonly kind: 'coming' | 'going';
  /** Its `struct module`. */
  readonly structAddress: number;
}

/** Compilers may have put a suffix to the names of functions in one file. */
const SUFFIXES = ['', '.isra.0', '.constprop.0'];
/** Both are handed the module first (kernel/module/main.c). */
const COMING = ['do_init_module'];
const GOING = ['free_module', 'ftrace_release_mod'];

/** Stops a guest where its kernel loads and unloads modules. The stub keeps the breakpoints out of the guest's memory. */
export class ModuleLoader {
  readonly #session: KernelSession;
  readonly #places: ReadonlyMap<number, LoaderEvent['kind']>;

  /** Throws `kernel-unsupported` where it can't be seen that a module is loaded. */
  constructor(session: KernelSession) {
    this.#session = session;
    const { kernel } = session;
    const coming = find(kernel, COMING) ?? kernel.expect(...COMING);
    const going = find(kernel, GOING);
    this.#places = new Map([
      [coming, 'coming'] as const,
      ...(going === undefined ? [] : [[going, 'going'] as const]),
    ]);
  }

  /** In a stopped guest: what is loaded from now on is told. */
  async begin(): Promise<void> {
    await this.#session.client.insertBreakpoints(this.#places.keys());
  }

  /** In a stopped guest. */
  async end(): Promise<void> {
    await this.#session.client.removeBreakpoints(this.#places.keys());
  }

  /**
   * Lets the guest run until it loads or unloads something, for so long at most; `use` then has a guest that stands still. Where it has led
   * the task away (`led`), the event is told again when that has come back. Rejects with `target-gone`.
   */
  async attend(
    timeoutMs: number,
    use: (event: LoaderEvent, task: Borrowed) => Promise<'led' | 'done'>,
  ): Promise<void> {
    const { client } = this.#session;
    this.#session.resume();
    const stop = await client.waitForStop(timeoutMs);
    if (stop === undefined) return;
    if (stop.kind === 'exited') throw guestEnded(stop.detail);
    await this.#session.hold(async () => {
      const vcpus = await client.vcpus();
      for (const [index, registers] of (await client.readAllRegisters(vcpus)).entries()) {
        const kind = this.#places.get(registers.address('rip'));
        if (kind === undefined) continue;
        const vcpu = vcpus[index] as string;
        const outcome = await use({ kind, structAddress: registers.address('rdi') }, { vcpu, registers });
        if (outcome === 'done') await this.#stepOver(vcpu);
      }
    });
  }

  /** A CPU that stands at a breakpoint would stop there again at once. */
  async #stepOver(vcpu: string): Promise<void> {
    await this.end();
    const stop = await this.#session.client.step(vcpu);
    if (stop.kind === 'exited') throw guestEnded(stop.detail);
    await this.begin();
  }
}

function find(kernel: KernelAddresses, names: readonly string[]): number | undefined {
  for (const name of names)
    for (const suffix of SUFFIXES) {
      const address = kernel.find(name + suffix);
      if (address !== undefined) return address;
    }
  return undefined;
}
