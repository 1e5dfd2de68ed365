import type { RegisteredKernelFunction } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { encodeJump, JUMP_BYTES } from './kernel-trampoline.js';
import type { PatchVersions } from './kernel-versions.js';
import { ModuleWatch } from './module-identity.js';

/**
 * What is at a function's entry: a jump of livegraft's, what was there before it, or nothing of either: the module was unloaded, and
 * its memory may be somebody else's.
 */
export type EntryContent = 'redirected' | 'original' | 'gone';

/** The same for people: a module that was loaded again has an entry that nobody redirected. */
export type EntryState = 'redirected' | 'original' | 'moduleUnloaded' | 'moduleReloaded';

/** Looks at the entries of patched functions. Those of the kernel stay where they are; modules come and go. */
export class KernelEntries {
  readonly #session: KernelSession;
  readonly #modules: ModuleWatch;

  constructor(session: KernelSession) {
    this.#session = session;
    this.#modules = new ModuleWatch(session.memory, session.kernel, session.layout);
  }

  /** In a stopped guest, and true as long as it stands still. */
  async content(versions: PatchVersions, fn: RegisteredKernelFunction): Promise<EntryContent> {
    const module = versions.patch.modules.find(({ name }) => name === fn.object);
    if (module !== undefined && !(await this.#modules.isLoaded(module))) return 'gone';
    const bytes = await this.#session.memory.read(fn.site, JUMP_BYTES);
    const is = (expected: ArrayLike<number>) => bytes.every((byte, i) => byte === expected[i]);
    if (versions.jumpTargets(fn).some((to) => is(encodeJump(fn.site, to)))) return 'redirected';
    return is(fn.original) ? 'original' : 'gone';
  }

  /** Stops the guest, if it runs. */
  async state(versions: PatchVersions, fn: RegisteredKernelFunction): Promise<EntryState> {
    const { patch } = versions;
    await this.#session.stop();
    const content = await this.content(versions, fn);
    this.#session.breathe();
    if (!patch.modules.some(({ name }) => name === fn.object))
      return content === 'original' ? 'original' : 'redirected';
    switch (content) {
      case 'redirected':
        return 'redirected';
      case 'original':
        return patch.state === 'applied' ? 'moduleReloaded' : 'original';
      case 'gone':
        return this.#session.modules.some(({ name }) => name === fn.object)
          ? 'moduleReloaded'
          : 'moduleUnloaded';
    }
  }
}
