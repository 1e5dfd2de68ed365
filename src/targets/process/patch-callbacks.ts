import { BORROWED_CALL_RECORD_BYTES, BORROWED_CALL_RETURNED } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import {
  type CallbackKind,
  type CallbackObject,
  type CallbackStage,
  stageAfter,
} from '../../engine/callbacks.js';
import type { ProcessMemory } from './memory.js';
import { partsOf } from './patch-objects.js';
import type { Mapping } from './proc.js';
import type { RegisteredCallbacks, RegisteredPart, RegisteredPatch } from './registry.js';
import { findLanding } from './remote-call.js';
import type { StackInspector } from './stack-inspector.js';
import { type Purpose, ThreadBorrower } from './thread-borrower.js';
import { PATIENT_TIMEOUT_MS, sleepSync, type Tracer } from './tracer.js';

/** Four 32-bit words: phase and result (see `encodeBorrowedCall`), the callback that these are of, the object's stage. */
export const CALLBACK_RECORD_BYTES = BORROWED_CALL_RECORD_BYTES + 8;

const KINDS: readonly CallbackKind[] = ['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch'];
const STAGES: readonly CallbackStage[] = ['none', 'prePatched', 'postPatched', 'preUnpatched'];
const IDLE = 0;
const BEGUN = 1;
const NO_KIND = 0;

/** How long a callback may take, and how long a thread is waited for that may run it. */
const CALLBACK_TIMEOUT_MS = 3000;
const THREAD_TIMEOUT_MS = 2000;

interface CallbackRecord {
  readonly phase: number;
  readonly result: number;
  readonly kind: CallbackKind | undefined;
  readonly stage: CallbackStage;
}

export interface CallbackTarget {
  readonly tracer: Tracer;
  readonly memory: ProcessMemory;
  readonly mappings: readonly Mapping[];
  readonly inspector: StackInspector;
}

/**
 * The callbacks of one patch in one process, run on a borrowed thread that waits in a system call. The thread keeps a record of
 * its progress in the patch's memory and comes back by itself: when livegraft is killed meanwhile, the callback runs to its
 * end all the same, and the next run sees that it has.
 */
export class ProcessCallbacks implements CallbackObject {
  readonly name: string;
  readonly #target: CallbackTarget;
  readonly #patch: RegisteredPatch;
  readonly #part: RegisteredPart;
  readonly #callbacks: RegisteredCallbacks;

  constructor(
    target: CallbackTarget,
    patch: RegisteredPatch,
    part: RegisteredPart,
    callbacks: RegisteredCallbacks,
  ) {
    this.name = callbacks.object;
    this.#target = target;
    this.#patch = patch;
    this.#part = part;
    this.#callbacks = callbacks;
  }

  /** A callback that an earlier livegraft began is seen to its end first: its stage counts. */
  get stage(): CallbackStage {
    const record = this.#read();
    if (record.phase !== IDLE && record.kind !== undefined) this.#endEarlierRun(record.kind);
    return this.#read().stage;
  }

  has(kind: CallbackKind): boolean {
    return this.#callbacks.calls.some((call) => call.kind === kind);
  }

  setStage(stage: CallbackStage): void {
    this.#write({ phase: IDLE, result: 0, kind: undefined, stage });
  }

  run(kind: CallbackKind): LivegraftError | undefined {
    const { stage } = this;
    let result: number;
    try {
      result = this.#call(kind, stage);
    } catch (error) {
      if (!(error instanceof LivegraftError) || !FAILURES.has(error.code)) throw error;
      this.setStage(kind === 'prePatch' ? stage : stageAfter(kind));
      if (kind === 'prePatch') throw this.#veto(error.message, error);
      return new LivegraftError(error.code, `the ${kind} callback of ${this.#patch.name}: ${error.message}`, {
        ...(error.remedy === undefined ? {} : { remedy: error.remedy }),
        details: error.details,
      });
    }
    if (isVeto(kind, result)) {
      this.setStage(stage);
      throw this.#veto(`it returned ${result}`);
    }
    this.setStage(stageAfter(kind));
    return undefined;
  }

  #veto(why: string, cause?: unknown): LivegraftError {
    return new LivegraftError(
      'callback-veto',
      `the pre-patch callback of ${this.#patch.name} refuses the patch: ${why}`,
      {
        remedy:
          'see what the patch says of its conditions; nothing has been changed but what the callback itself did',
        details: { patch: this.#patch.id, why },
        cause,
      },
    );
  }

  #call(kind: CallbackKind, stage: CallbackStage): number {
    const { tracer, memory, mappings } = this.#target;
    const call = this.#callbacks.calls.find((c) => c.kind === kind);
    if (call === undefined) throw new Error(`the patch has no ${kind} callback`);
    const borrower = new ThreadBorrower(tracer, memory, findLanding(memory, mappings));
    const until = performance.now() + THREAD_TIMEOUT_MS;
    for (;;) {
      try {
        borrower.borrow(TO_CALL, (caller) => {
          this.#write({ phase: BEGUN, result: 0, kind, stage });
          caller.runBorrowedCall(call.at, call.returningAt, CALLBACK_TIMEOUT_MS);
        });
        return this.#read().result;
      } catch (error) {
        const isTemporary = error instanceof LivegraftError && error.code === 'no-thread-to-borrow';
        if (!isTemporary || performance.now() > until) throw error;
      }
      // A thread may be about to wait; those that stopped by themselves must go on for that.
      tracer.attend();
      sleepSync(2);
    }
  }

  #endEarlierRun(kind: CallbackKind): void {
    const until = performance.now() + CALLBACK_TIMEOUT_MS;
    for (;;) {
      const { stage } = this.#read();
      const isInside = this.#isThreadInside();
      // The record is read behind the look at the threads: one that is in neither was never led there.
      const { phase, result } = this.#read();
      if (phase === BORROWED_CALL_RETURNED) {
        this.setStage(isVeto(kind, result) ? stage : stageAfter(kind));
        return;
      }
      if (!isInside) {
        this.setStage(stage);
        return;
      }
      if (performance.now() > until) {
        const { pid } = this.#target.memory;
        throw new LivegraftError(
          'callback-running',
          `process ${pid}: the ${kind} callback of ${this.#patch.name}, which an earlier livegraft began, has not returned`,
          {
            remedy: 'try again later; livegraft stack shows where it is',
            details: { pid, patch: this.#patch.id },
          },
        );
      }
      this.#target.tracer.attend();
      sleepSync(5);
    }
  }

  #isThreadInside(): boolean {
    const { tracer, inspector, memory } = this.#target;
    const { address, sizeBytes } = this.#part.text;
    for (const tracee of [...tracer.tracees.values()]) {
      if (tracee.pid !== memory.pid) continue;
      tracer.interrupt(tracee);
      const state = tracer.collect(tracee, PATIENT_TIMEOUT_MS);
      if (state === 'running') return true;
      if (state === 'gone' || !tracer.fetchRegisters(tracee)) continue;
      const { frames } = inspector.walk(tracee);
      tracer.resume(tracee);
      if (frames.some(({ pc }) => pc >= address && pc < address + sizeBytes)) return true;
    }
    return false;
  }

  #read(): CallbackRecord {
    const bytes = this.#target.memory.readExactly(this.#callbacks.record, CALLBACK_RECORD_BYTES);
    return {
      phase: bytes.readUInt32LE(0),
      result: bytes.readInt32LE(4),
      kind: KINDS[bytes.readUInt32LE(8) - 1],
      stage: STAGES[bytes.readUInt32LE(12)] ?? 'none',
    };
  }

  #write({ phase, result, kind, stage }: CallbackRecord): void {
    const bytes = Buffer.alloc(CALLBACK_RECORD_BYTES);
    bytes.writeUInt32LE(phase, 0);
    bytes.writeInt32LE(result, 4);
    bytes.writeUInt32LE(kind === undefined ? NO_KIND : KINDS.indexOf(kind) + 1, 8);
    bytes.writeUInt32LE(STAGES.indexOf(stage), 12);
    this.#target.memory.write(this.#callbacks.record, bytes);
  }
}

/** Of a callback that was begun: it has had its turn. */
const FAILURES: ReadonlySet<string> = new Set(['callback-crashed', 'callback-stuck']);

/** What the others return is not even defined. */
function isVeto(kind: CallbackKind, result: number): boolean {
  return kind === 'prePatch' && result !== 0;
}

const TO_CALL: Purpose = { what: 'run a callback of the patch', syscalls: [], onlyWaiting: true };

/** The objects of a patch that have callbacks. */
export function callbackObjectsOf(
  target: CallbackTarget,
  patch: RegisteredPatch,
): readonly ProcessCallbacks[] {
  return partsOf(patch).flatMap((part) =>
    part.callbacks === undefined ? [] : [new ProcessCallbacks(target, patch, part, part.callbacks)],
  );
}
