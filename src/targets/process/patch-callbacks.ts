import { BORROWED_CALL_RETURNED } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { CallbackKind, CallbackObject, CallbackStage } from '../../engine/callbacks.js';
import {
  CALLBACK_BEGUN,
  CALLBACK_IDLE,
  CALLBACK_RECORD_BYTES,
  type CallbackRecord,
  encodeCallbackRecord,
  isVeto,
  parseCallbackRecord,
  stageBehind,
  vetoError,
} from '../callback-record.js';
import type { ProcessMemory } from './memory.js';
import { partsOf } from './patch-objects.js';
import type { Mapping } from './proc.js';
import type { RegisteredCallbacks, RegisteredPart, RegisteredPatch } from './registry.js';
import { findLanding } from './remote-call.js';
import type { StackInspector } from './stack-inspector.js';
import { type Purpose, ThreadBorrower } from './thread-borrower.js';
import { PATIENT_TIMEOUT_MS, sleepSync, type Tracer } from './tracer.js';

/** How long a callback may take, and how long a thread is waited for that may run it. */
const CALLBACK_TIMEOUT_MS = 3000;
const THREAD_TIMEOUT_MS = 2000;

export interface CallbackTarget {
  readonly tracer: Tracer;
  readonly memory: ProcessMemory;
  readonly mappings: readonly Mapping[];
  readonly inspector: StackInspector;
  /** Who lends the thread that runs them; any that waits without. */
  readonly borrower?: Pick<ThreadBorrower, 'borrow'>;
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
    if (record.phase !== CALLBACK_IDLE && record.kind !== undefined) this.#endEarlierRun(record.kind);
    return this.#read().stage;
  }

  has(kind: CallbackKind): boolean {
    return this.#callbacks.calls.some((call) => call.kind === kind);
  }

  setStage(stage: CallbackStage): void {
    this.#write({ phase: CALLBACK_IDLE, result: 0, kind: undefined, stage });
  }

  run(kind: CallbackKind): LivegraftError | undefined {
    const { stage } = this;
    let result: number;
    try {
      result = this.#call(kind, stage);
    } catch (error) {
      if (!(error instanceof LivegraftError) || !FAILURES.has(error.code)) throw error;
      this.setStage(stageBehind(kind, stage, undefined));
      if (kind === 'prePatch') throw vetoError(this.#patch, error.message, error);
      return new LivegraftError(error.code, `the ${kind} callback of ${this.#patch.name}: ${error.message}`, {
        ...(error.remedy === undefined ? {} : { remedy: error.remedy }),
        details: error.details,
      });
    }
    this.setStage(stageBehind(kind, stage, result));
    if (isVeto(kind, result)) throw vetoError(this.#patch, `it returned ${result}`);
    return undefined;
  }

  #call(kind: CallbackKind, stage: CallbackStage): number {
    const { tracer, memory, mappings } = this.#target;
    const call = this.#callbacks.calls.find((c) => c.kind === kind);
    if (call === undefined) throw new Error(`the patch has no ${kind} callback`);
    const borrower =
      this.#target.borrower ?? new ThreadBorrower(tracer, memory, findLanding(memory, mappings));
    const until = performance.now() + THREAD_TIMEOUT_MS;
    for (;;) {
      try {
        borrower.borrow(TO_CALL, (caller) => {
          this.#write({ phase: CALLBACK_BEGUN, result: 0, kind, stage });
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
        this.setStage(stageBehind(kind, stage, result));
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
    return parseCallbackRecord(
      this.#target.memory.readExactly(this.#callbacks.record, CALLBACK_RECORD_BYTES),
    );
  }

  #write(record: CallbackRecord): void {
    this.#target.memory.write(this.#callbacks.record, encodeCallbackRecord(record));
  }
}

/** Of a callback that was begun: it has had its turn. */
const FAILURES: ReadonlySet<string> = new Set(['callback-crashed', 'callback-stuck']);

const TO_CALL: Purpose = { what: 'run a callback of the patch', calls: [], onlyWaiting: true };

/** The objects of a patch that have callbacks. */
export function callbackObjectsOf(
  target: CallbackTarget,
  patch: RegisteredPatch,
): readonly ProcessCallbacks[] {
  return partsOf(patch).flatMap((part) =>
    part.callbacks === undefined ? [] : [new ProcessCallbacks(target, patch, part, part.callbacks)],
  );
}
