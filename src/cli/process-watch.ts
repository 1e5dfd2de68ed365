import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError } from '../base/errors.js';
import { Doorbell } from '../targets/process/doorbell.js';
import { attendLeaving, findLeavers } from '../targets/process/leaving-objects.js';
import { ProcessMemory } from '../targets/process/memory.js';
import { listModules } from '../targets/process/modules.js';
import { installDoorbell, ObjectWatch, removeDoorbell } from '../targets/process/object-watch.js';
import { objectStates } from '../targets/process/patch-register.js';
import { expectPatchableProcess } from '../targets/process/preflight.js';
import { isRunning, readMappings } from '../targets/process/proc.js';
import { ProcessSession } from '../targets/process/process-session.js';
import type { RegisteredDoorbell } from '../targets/process/registry.js';
import { findRegistryMapping, RegistryStore } from '../targets/process/registry-store.js';
import { stepsOf } from './operation-support.js';
import type { ApplyOptions, WatchOptions } from './operations.js';
import { tryCleanUp } from './process-cleanup.js';
import { contentOf, settle, takeBackCallbacks, tellCallback, tellChanges } from './process-objects.js';

/** Looking costs this process some microseconds, and the target nothing: it is read from outside. */
const POLL_MS = 5;
/** Who has loaded something may load more (plug-ins, the libraries that one needs): for so long it is looked more often. */
const BURST_MS = 200;
const BURST_POLL_MS = 1;
/** Memory of objects that have gone is given back once so much of it has gathered: that takes a look at every stack. */
const MOST_RETIRED = 16;

type Apply = (options: ApplyOptions) => Promise<unknown>;

/**
 * Patches objects as a process loads them, until it is told to stop or the process ends. It does not trace the process
 * meanwhile: other commands, debuggers too, work beside it.
 */
export async function watch(options: WatchOptions, apply: Apply): Promise<void> {
  expectPatchableProcess(options.pid);
  await new ProcessWatch(options, apply).run();
}

class ProcessWatch {
  readonly #options: WatchOptions;
  readonly #apply: Apply;
  readonly #memory: ProcessMemory;
  #doorbell: RegisteredDoorbell | undefined;
  #bell: Doorbell | undefined;
  #objects: ObjectWatch | undefined;
  #rangAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: WatchOptions, apply: Apply) {
    this.#options = options;
    this.#apply = apply;
    this.#memory = new ProcessMemory(options.pid);
  }

  async run(): Promise<void> {
    const { pid, signal } = this.#options;
    try {
      await this.#begin();
      while (!signal.aborted && isRunning(pid)) {
        const isBusy = performance.now() - this.#rangAtMs < BURST_MS;
        await new Promise((resolve) => setTimeout(resolve, isBusy ? BURST_POLL_MS : POLL_MS));
        await this.#look();
      }
      if (isRunning(pid)) await this.#withThreads((session) => this.#end(session));
    } catch (error) {
      if (isRunning(pid)) throw error;
    } finally {
      this.#memory.close();
    }
    if (!isRunning(pid)) stepsOf(this.#options.onEvent).step('watch', `process ${pid} has ended`);
  }

  async #begin(): Promise<void> {
    const { pid, onEvent } = this.#options;
    const isDone = await this.#withThreads((session) => {
      const { registry } = session;
      if (registry === undefined || registry.patches.length === 0) {
        throw new LivegraftError('no-such-patch', `process ${pid} carries no patch`, {
          remedy: 'apply one first, with --late for a library that is not loaded',
          details: { pid },
        });
      }
      if (registry.doorbell !== undefined) {
        const there = new Doorbell(session.memory, registry.doorbell);
        if (there.isWatched) {
          throw new LivegraftError(
            'already-watched',
            `process ${pid} is watched by process ${there.watcher}`,
            {
              remedy: 'end that one first',
              details: { pid, watcher: there.watcher },
            },
          );
        }
      }
      settle(session, onEvent);
      this.#install(session);
    });
    if (!isDone) return;
    await this.#completeUnpatched();
    stepsOf(onEvent).step('watch', `process ${pid}; end with Ctrl-C`);
  }

  #install(session: ProcessSession): void {
    this.#doorbell = installDoorbell(session);
    session.refreshModules();
    // The session and its memory are closed soon.
    this.#bell = new Doorbell(this.#memory, this.#doorbell);
    this.#objects = new ObjectWatch(session, this.#bell);
  }

  /** One look at the doorbell. */
  async #look(): Promise<void> {
    const bell = this.#bell;
    if (bell === undefined) return;
    let rings = 0;
    try {
      // Read once: it may ring between two looks, and what comes with that is not known yet.
      rings = bell.rings;
      const isRinging = rings !== bell.answered;
      if (isRinging) this.#rangAtMs = performance.now();
      if (!isRinging && bell.isArmed) {
        // A command that held the threads meanwhile has attended to it.
        if (this.#objects?.rings !== rings) this.#catchUp(rings);
        return;
      }
      if (isRinging && bell.isLeaving && this.#hasLeavers()) {
        await this.#leave(bell, rings);
        return;
      }
      if (isRinging && this.#objects?.passOver(this.#memory, rings) === true) return;
    } catch (error) {
      // The last patch was reverted by a livegraft that saw nobody watch, or the process is about to end.
      if (!(error instanceof LivegraftError)) throw error;
      if (
        isRunning(this.#options.pid) &&
        findRegistryMapping(readMappings(this.#options.pid) ?? []) === undefined
      )
        throw new LivegraftError('watch-lost', `process ${this.#options.pid} carries no patch any more`);
      return;
    }
    const { onEvent } = this.#options;
    let isComplete = true;
    await this.#withThreads((session) => {
      const registered = session.registry?.doorbell;
      if (registered?.data !== this.#doorbell?.data) {
        this.#install(session);
        isComplete = false;
        return;
      }
      const giveUp = (part: Parameters<typeof takeBackCallbacks>[1]) =>
        takeBackCallbacks(session, part, onEvent);
      const changes = this.#objects?.attend(session, rings, contentOf, giveUp);
      if (changes !== undefined) {
        tellChanges(changes, onEvent);
        isComplete = !changes.isMissed && changes.refused.length === 0;
      }
      if (!bell.isArmed) {
        isComplete = false;
        stepsOf(onEvent).notice('the process did not wait for an answer: what it loaded runs as it is');
        this.#install(session);
      }
      if ((session.registry?.retired.length ?? 0) > MOST_RETIRED) tryCleanUp(session);
    });
    if (!isComplete) await this.#completeUnpatched();
  }

  #hasLeavers(): boolean {
    const home = findRegistryMapping(readMappings(this.#options.pid) ?? []);
    const registry = home && new RegistryStore(this.#memory, home.start).read();
    return findLeavers(registry?.patches ?? []).length > 0;
  }

  /** Objects are about to go: their callbacks have their turn. A command that holds the threads lets them go without. */
  async #leave(bell: Doorbell, rings: number): Promise<void> {
    await this.#withThreads((session) => {
      if (bell.rings !== rings || bell.answered === rings) return;
      attendLeaving(session, bell, tellCallback(this.#options.onEvent));
      this.#objects?.learn(session.modules, rings);
    });
  }

  /** What is just being loaded now is taken for known, and is not patched as it comes, but right after. */
  #catchUp(rings: number): void {
    const mappings = readMappings(this.#options.pid) ?? [];
    this.#objects?.learn(listModules(this.#memory, mappings), rings);
  }

  /** Brings patches to what could not be patched as it came, in transitions of their own. */
  async #completeUnpatched(): Promise<void> {
    const { pid, signal, onEvent } = this.#options;
    const session = new ProcessSession(pid, x86_64, 'look');
    let paths: string[];
    try {
      if (session.registry?.transition !== undefined) return;
      paths = (session.registry?.patches ?? [])
        .filter((patch) => objectStates(session, patch).some(({ state }) => state === 'unpatched'))
        .map((patch) => patch.path);
    } finally {
      session.close();
    }
    for (const patchPath of paths) {
      const common = { barrier: undefined, replace: false, allowSuspendedContexts: false, timeoutMs: 30_000 };
      try {
        await this.#apply({ pid, patchPath, model: 'hybrid', signal, onEvent, ...common });
      } catch (error) {
        if (!(error instanceof LivegraftError)) throw error;
        stepsOf(onEvent).notice(error.message);
      }
    }
  }

  #end(session: ProcessSession): void {
    removeDoorbell(session);
    tryCleanUp(session);
    stepsOf(this.#options.onEvent).step('watch', `process ${this.#options.pid} is not watched any more`);
  }

  /** False when another process holds the threads: it attends to the doorbell, if it is a livegraft. */
  async #withThreads(work: (session: ProcessSession) => void): Promise<boolean> {
    const { pid } = this.#options;
    for (let attempt = 0; ; attempt++) {
      let session: ProcessSession | undefined;
      try {
        session = new ProcessSession(pid, x86_64);
        session.seize();
        work(session);
        return true;
      } catch (error) {
        const isHeld = error instanceof LivegraftError && error.code === 'already-traced';
        if (!isHeld) throw error;
        if (attempt >= HELD_ATTEMPTS) return false;
      } finally {
        session?.close();
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }
}

const HELD_ATTEMPTS = 20;
