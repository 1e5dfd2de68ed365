import { BORROWED_CALL_RETURNED } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import {
  type AwaitableCallbackObject,
  type CallbackKind,
  type CallbackMoment,
  type CallbackStage,
  callbackAt,
  stageAfter,
} from '../../engine/callbacks.js';
import type { Patch } from '../../patch/content.js';
import type { PatchLayout } from '../../patch/layout.js';
import type { LinkedImage } from '../../patch/link.js';
import {
  CALLBACK_BEGUN,
  CALLBACK_IDLE,
  CALLBACK_RECORD_BYTES,
  encodeCallbackRecord,
  isVeto,
  parseCallbackRecord,
  stageBehind,
  vetoError,
} from '../callback-record.js';
import type { GuestChange } from './gdb-client.js';
import { type Borrowed, type GuestCalls, guestEnded, leadAway } from './guest-calls.js';
import type { GuestWatch } from './guest-watch.js';
import { addressOf } from './kernel-layout.js';
import type { RegisteredKernelCallbacks, RegisteredKernelPatch } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { contains, stackOf } from './kernel-stacks.js';
import { encodeCallAndReturn, REDIRECT_BYTES } from './kernel-trampoline.js';

/** A callback record, and the stack pointer that the task had which was led to a callback last. */
export const KERNEL_CALLBACK_RECORD_BYTES = CALLBACK_RECORD_BYTES + 8;

/** How long a task is waited for that begins a system call. */
const TASK_TIMEOUT_MS = 10_000;
/** How long a callback may take before the command ends without it. */
const CALLBACK_TIMEOUT_MS = 3000;
const [FIRST_LOOK_MS, LONGEST_LOOK_MS] = [1, 50];
/** To list all tasks for the one that was led away takes a longer stop. */
const TASK_LOOK_MS = 500;
/** Of the call instruction that the code of a callback's call begins with. */
const CALL_BYTES = 5;
/** What an interrupt saves in the same place when it comes before the call: the kernel's stack segment. */
const KERNEL_DS = 0x18;

/** What callbacks need of a running kernel. */
export interface CallbackKernel {
  readonly session: KernelSession;
  readonly calls: GuestCalls;
  readonly watch: GuestWatch;
}

/**
 * The callbacks of one patch in a running kernel, run by a task that begins a system call: in process context, with interrupts on and
 * nothing locked. The task comes back by itself and says so in the patch's memory: when livegraft is killed meanwhile, the callback
 * runs to its end all the same, and the next run sees that it has.
 */
export class KernelCallbacks implements AwaitableCallbackObject {
  readonly name: string;
  readonly #kernel: CallbackKernel;
  readonly #patch: RegisteredKernelPatch;
  readonly #callbacks: RegisteredKernelCallbacks;
  #stage: CallbackStage;

  private constructor(
    kernel: CallbackKernel,
    patch: RegisteredKernelPatch,
    callbacks: RegisteredKernelCallbacks,
    stage: CallbackStage,
  ) {
    this.name = callbacks.object;
    this.#kernel = kernel;
    this.#patch = patch;
    this.#callbacks = callbacks;
    this.#stage = stage;
  }

  /**
   * Those of some objects of a patch. A callback that an earlier livegraft began is seen to its end first; rejects with
   * `callback-running` when that takes too long.
   */
  static async open(
    kernel: CallbackKernel,
    patch: RegisteredKernelPatch,
    objects: readonly string[],
  ): Promise<readonly KernelCallbacks[]> {
    const all: KernelCallbacks[] = [];
    for (const callbacks of patch.callbacks ?? []) {
      if (!objects.includes(callbacks.object)) continue;
      const { phase, kind, stage } = await readRecord(kernel.session, callbacks.record);
      const opened = new KernelCallbacks(kernel, patch, callbacks, stage);
      if (phase !== CALLBACK_IDLE && kind !== undefined) {
        const result = await opened.#waitForReturn(kind);
        await opened.setStage(stageBehind(kind, stage, result));
      }
      all.push(opened);
    }
    return all;
  }

  /** Those of a module that is being loaded or unloaded, for {@link passWith}. Undefined when it has none. */
  static async ofModule(
    kernel: CallbackKernel,
    patch: RegisteredKernelPatch,
    module: string,
  ): Promise<KernelCallbacks | undefined> {
    const callbacks = patch.callbacks?.find(({ object }) => object === module);
    if (callbacks === undefined) return undefined;
    const { stage } = await readRecord(kernel.session, callbacks.record);
    return new KernelCallbacks(kernel, patch, callbacks, stage);
  }

  get stage(): CallbackStage {
    return this.#stage;
  }

  has(kind: CallbackKind): boolean {
    return this.#callbacks.calls.some((call) => call.kind === kind);
  }

  async setStage(stage: CallbackStage): Promise<void> {
    const { session, watch } = this.#kernel;
    await watch.expectAlive();
    const record = encodeCallbackRecord({ phase: CALLBACK_IDLE, result: 0, kind: undefined, stage });
    await session.data.writeMemory(this.#callbacks.record, record);
    session.endStep();
    this.#stage = stage;
  }

  /**
   * Gives the callbacks their turn in the task that loads or unloads the module, which stands at the first instruction of a function, in a
   * guest that stands still. `led`: one has begun, and the task will come back to that instruction; then this is to be called again.
   * `onRun` is told of each that has returned. Rejects with `callback-veto`.
   */
  async passWith(
    moment: CallbackMoment,
    task: Borrowed,
    onRun: (kind: CallbackKind) => void,
  ): Promise<'led' | 'passed'> {
    const { session } = this.#kernel;
    const { phase, kind: begun, result } = await readRecord(session, this.#callbacks.record);
    if (phase !== CALLBACK_IDLE && begun !== undefined) {
      await this.setStage(stageBehind(begun, this.#stage, result));
      onRun(begun);
      if (isVeto(begun, result)) throw vetoError(this.#patch, `it returned ${result}`);
    }
    for (;;) {
      const kind = callbackAt(this.#stage, moment);
      if (kind === undefined) return 'passed';
      if (!this.has(kind)) {
        await this.setStage(stageAfter(kind));
        continue;
      }
      await this.#kernel.watch.expectAlive();
      await session.client.change(leadAway(task, this.#callAt(kind), this.#note(kind, this.#stage)));
      session.memory.forget();
      return 'led';
    }
  }

  async run(kind: CallbackKind): Promise<LivegraftError | undefined> {
    const stage = this.#stage;
    await this.#begin(kind, stage);
    const result = await this.#waitForReturn(kind);
    await this.setStage(stageBehind(kind, stage, result));
    if (result !== undefined) {
      if (isVeto(kind, result)) throw vetoError(this.#patch, `it returned ${result}`);
      return undefined;
    }
    const crashed = new LivegraftError(
      'callback-crashed',
      `the ${kind} callback of ${this.#patch.name} did not return: the task that ran it has ended`,
      {
        remedy: 'see what the kernel says of it (dmesg in the guest)',
        details: { patch: this.#patch.id, callback: kind },
      },
    );
    if (kind === 'prePatch')
      throw vetoError(this.#patch, 'it did not return, and the task that ran it has ended', crashed);
    return crashed;
  }

  async #begin(kind: CallbackKind, stage: CallbackStage): Promise<void> {
    const { session, calls, watch } = this.#kernel;
    const at = this.#callAt(kind);
    session.client.phase = 'callback';
    await session.stop();
    await calls.lead(TASK_TIMEOUT_MS, at, () => watch.expectAlive(), this.#note(kind, stage));
    session.resume();
  }

  /** What says that a task is led to a callback, once it is known where its stack pointer will be. */
  #note(kind: CallbackKind, stage: CallbackStage): (stackPointer: number) => GuestChange {
    return (stackPointer) => {
      const bytes = new Uint8Array(KERNEL_CALLBACK_RECORD_BYTES);
      bytes.set(encodeCallbackRecord({ phase: CALLBACK_BEGUN, result: 0, kind, stage }));
      new DataView(bytes.buffer).setBigInt64(CALLBACK_RECORD_BYTES, BigInt(stackPointer), true);
      return { kind: 'write', address: this.#callbacks.record, bytes };
    };
  }

  #callAt(kind: CallbackKind): number {
    const call = this.#callbacks.calls.find((each) => each.kind === kind);
    if (call === undefined) throw new Error(`the patch has no ${kind} callback`);
    return call.at;
  }

  /** Its result; undefined when the task has ended inside of it: it crashed. Leaves the guest running. */
  async #waitForReturn(kind: CallbackKind): Promise<number | undefined> {
    const { session } = this.#kernel;
    const startedAt = performance.now();
    let taskSeenAt = startedAt;
    for (let lookMs = FIRST_LOOK_MS; ; lookMs = Math.min(2 * lookMs, LONGEST_LOOK_MS)) {
      const { phase, result, stackPointer } = await readRecord(session, this.#callbacks.record);
      session.resume();
      if (phase === BORROWED_CALL_RETURNED) return result;
      const now = performance.now();
      if (now - taskSeenAt > TASK_LOOK_MS) {
        if (!(await this.#isTaskThere(kind, stackPointer))) return this.#resultOfEnded();
        taskSeenAt = now;
      }
      if (now - startedAt > CALLBACK_TIMEOUT_MS) throw this.#running(kind);
      const stop = await session.client.waitForStop(lookMs);
      if (stop?.kind === 'exited') throw guestEnded(stop.detail);
    }
  }

  /** A task may also have returned, and ended behind that, since its record was read. */
  async #resultOfEnded(): Promise<number | undefined> {
    const { session } = this.#kernel;
    const { phase, result } = await readRecord(session, this.#callbacks.record);
    session.resume();
    return phase === BORROWED_CALL_RETURNED ? result : undefined;
  }

  /**
   * Whether there is a task that is still to come back: with a stack that this address lies on, and the return address of the call on it,
   * or what lies there before. The stack of one that has ended is soon another task's, which gets it cleared.
   */
  async #isTaskThere(kind: CallbackKind, address: number): Promise<boolean> {
    const { session } = this.#kernel;
    const at = this.#callAt(kind);
    await session.stop();
    try {
      const tasks = await session.tasks.tasks(await session.tasks.cpus());
      if (!tasks.some((task) => contains(stackOf(task), address))) return false;
      const returnsTo = addressOf(await session.memory.read(address - 8, 8));
      return [at, at + CALL_BYTES, KERNEL_DS].includes(returnsTo);
    } catch (error) {
      if (error instanceof LivegraftError && error.code === 'guest-inconsistent') return true;
      throw error;
    } finally {
      session.resume();
    }
  }

  #running(kind: CallbackKind): LivegraftError {
    return new LivegraftError(
      'callback-running',
      `the ${kind} callback of ${this.#patch.name} has not returned in ${CALLBACK_TIMEOUT_MS / 1000} s`,
      {
        remedy:
          'repeat the command later: it waits for the callback again; livegraft stack shows where it is',
        details: { patch: this.#patch.id, callback: kind },
      },
    );
  }
}

/** The callbacks that a patch has, by the objects that they are of. */
export function callbacksOf({ manifest }: Patch): readonly {
  readonly object: string;
  readonly names: readonly (readonly [CallbackKind, string])[];
}[] {
  return manifest.objects
    .map(({ name, callbacks }) => ({
      object: name,
      names: Object.entries(callbacks ?? {}) as [CallbackKind, string][],
    }))
    .filter(({ names }) => names.length > 0);
}

/** Puts code into an image, from an offset on, that leads to each callback. */
export function linkCallbacks(
  patch: Patch,
  { recordOffset }: PatchLayout,
  image: LinkedImage,
  offset: number,
): readonly RegisteredKernelCallbacks[] {
  let place = offset;
  return callbacksOf(patch).map(({ object, names }, index) => {
    const record = image.base + recordOffset + index * KERNEL_CALLBACK_RECORD_BYTES;
    const calls = names.map(([kind, name]) => {
      const callee = image.functions.find((fn) => fn.name === name)?.address;
      if (callee === undefined)
        throw new LivegraftError(
          'patch-malformed',
          `the patch has no function ${name}, its ${kind} callback`,
        );
      const at = image.base + place;
      image.bytes.set(encodeCallAndReturn({ at, callee, record }), place);
      place += REDIRECT_BYTES;
      return { kind, at };
    });
    return { object, record, calls };
  });
}

async function readRecord(session: KernelSession, record: number) {
  const bytes = await session.data.readMemory(record, KERNEL_CALLBACK_RECORD_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return {
    ...parseCallbackRecord(bytes),
    stackPointer: Number(view.getBigInt64(CALLBACK_RECORD_BYTES, true)),
  };
}
