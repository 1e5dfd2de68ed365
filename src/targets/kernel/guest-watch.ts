import { LivegraftError } from '../../base/errors.js';
import { isMemoryError } from './gdb-memory.js';
import { guestEnded } from './guest-calls.js';
import type { KernelRegistryStore } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';

/** `PANIC_CPU_INVALID`: what `panic_cpu` is as long as no CPU has panicked (kernel/panic.c). */
const NO_CPU = -1;
/** How often to let a guest run on in which the kernel can't be seen: it may be in user mode, or starting again. */
const MAX_TRIES = 50;

/**
 * Tells whether the guest still is the one that was connected to. A stub says nothing when a guest starts again: its
 * memory then holds another instance of the kernel, perhaps at the same place, and what is known of the old one must not be
 * written there.
 */
export class GuestWatch {
  readonly #session: Pick<KernelSession, 'resume' | 'stopAndRead'>;
  readonly #store: Pick<KernelRegistryStore, 'anchorPlace' | 'isAnchor'>;
  readonly #panicCpu: number | undefined;

  constructor(session: KernelSession, store: KernelRegistryStore) {
    this.#session = session;
    this.#store = store;
    this.#panicCpu = session.kernel.find('panic_cpu');
  }

  /**
   * Stops the guest, if it runs, and holds it against what livegraft has left in it: on return that is true in this very
   * stop. Rejects with `target-gone` when the kernel has panicked, or another instance of it runs.
   */
  async expectAlive(): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#look();
      } catch (error) {
        if (!isMemoryError(error)) throw error;
        if (attempt >= MAX_TRIES) throw guestEnded('its kernel is not there any more: it was started again');
      }
      this.#session.resume();
    }
  }

  /** Does something in the guest; where that fails because the guest has ended, says so in place of its error. */
  async explain<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof LivegraftError && MAY_BE_GONE.has(error.code)) await this.expectAlive();
      throw error;
    }
  }

  /** Asked for together with the stop: each wait for the stub is as long as the scheduler of this machine makes it. */
  async #look(): Promise<void> {
    const { anchorPlace } = this.#store;
    const panicked = this.#panicCpu === undefined ? [] : [{ address: this.#panicCpu, sizeBytes: 4 }];
    const found = await this.#session.stopAndRead([
      ...panicked,
      ...(anchorPlace === undefined ? [] : [anchorPlace]),
    ]);
    const [cpu, anchor] = panicked.length === 0 ? [undefined, found[0]] : found;
    if (anchor !== undefined && !this.#store.isAnchor(anchor))
      throw guestEnded('what livegraft wrote into it is not there any more: it was started again');
    if (cpu !== undefined && new DataView(cpu.buffer, cpu.byteOffset, 4).getInt32(0, true) !== NO_CPU)
      throw guestEnded('its kernel has panicked');
  }
}

/** What a kernel that has panicked, or another one at its place, looks like to whoever expects the old one. */
const MAY_BE_GONE: ReadonlySet<string> = new Set([
  ...['guest-memory', 'guest-inconsistent', 'no-safe-point', 'guest-call-stuck', 'registry-damaged'],
]);
