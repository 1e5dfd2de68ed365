import { LivegraftError } from '../../base/errors.js';
import type { ProcessMemory } from './memory.js';
import { readBlockingSyscall, readThreadStat } from './proc.js';
import { ORIG_RAX, readRegister } from './registers.js';
import { type Landing, RemoteCaller } from './remote-call.js';
import type { PlannedCall } from './seccomp.js';
import { isWait, usesRestartBlock } from './syscalls.js';
import type { Tracee, Tracer } from './tracer.js';

/** What a thread is borrowed for. */
export interface Purpose {
  /** For errors: "to …". */
  readonly what: string;
  /** Every system call that livegraft will have it make, with those of its arguments that are known. */
  readonly calls: readonly PlannedCall[];
  /**
   * Only a thread that waits for something outside of it, in a system call that nothing makes with a lock of the C library
   * held: what is called on it may allocate memory.
   */
  readonly onlyWaiting: boolean;
}

/** Borrows a thread of the target: see {@link RemoteCaller} for what it goes through and why it survives. */
export class ThreadBorrower {
  readonly #tracer: Tracer;
  readonly #memory: ProcessMemory;
  readonly #landing: Landing;

  constructor(tracer: Tracer, memory: ProcessMemory, landing: Landing) {
    this.#tracer = tracer;
    this.#memory = memory;
    this.#landing = landing;
  }

  /**
   * Throws what `work` throws, or why no thread could be borrowed: `target-stopped`, `no-stack-room`, a seccomp filter's
   * refusal, `no-thread-to-borrow`. In every case the thread is put back where it was.
   */
  borrow<T>(purpose: Purpose, work: (caller: RemoteCaller) => T): T {
    const { pid } = this.#memory;
    this.#tracer.attend();
    const problems: unknown[] = [];
    for (const tracee of this.#candidates(purpose)) {
      if (!this.#stopAtRest(tracee)) continue;
      let caller: RemoteCaller | undefined;
      try {
        if (tracee.stop.kind === 'groupStop') {
          problems.push(
            new LivegraftError(
              'target-stopped',
              `process ${pid} is stopped (SIGSTOP): it can't ${purpose.what}`,
              {
                remedy: `let it go on (kill -CONT ${pid}) and try again`,
              },
            ),
          );
          continue;
        }
        if (purpose.onlyWaiting && !this.#isWaiting(tracee)) continue;
        caller = new RemoteCaller(this.#tracer, tracee, this.#memory, this.#landing, purpose.calls);
      } catch (error) {
        problems.push(error);
        continue;
      } finally {
        if (caller === undefined) this.#tracer.resume(tracee);
      }
      try {
        return work(caller);
      } finally {
        caller.restore();
        this.#tracer.resume(tracee);
        this.#tracer.attend();
      }
    }
    throw (
      problems[0] ??
      new LivegraftError(
        'no-thread-to-borrow',
        `process ${pid}: no thread could be stopped to ${purpose.what}`,
        {
          remedy: purpose.onlyWaiting
            ? 'try again: it takes a thread that waits for input, for time, or for another thread'
            : 'try again; threads in uninterruptible sleep can not be used',
        },
      )
    );
  }

  /**
   * Has a certain thread make system calls. `look` is called before, the thread stopped with its registers fetched. Undefined
   * where it can't be borrowed.
   */
  ask<T>(
    tracee: Tracee,
    calls: readonly PlannedCall[],
    look: () => void,
    work: (caller: RemoteCaller) => T,
  ): T | undefined {
    if (!this.#stopAtRest(tracee)) return undefined;
    let caller: RemoteCaller | undefined;
    try {
      if (this.#tracer.fetchRegisters(tracee)) look();
      if (tracee.stop.kind === 'groupStop') return undefined;
      caller = new RemoteCaller(this.#tracer, tracee, this.#memory, this.#landing, calls);
      return work(caller);
    } catch (error) {
      if (error instanceof LivegraftError) return undefined;
      throw error;
    } finally {
      caller?.restore();
      this.#tracer.resume(tracee);
    }
  }

  /** It was woken from its wait by us, and nothing else. */
  #isWaiting(tracee: Tracee): boolean {
    return this.#tracer.fetchRegisters(tracee) && isWait(readRegister(tracee.registers, ORIG_RAX));
  }

  /**
   * Stops a thread where its registers are all that it has: in a trap of ours. At other stops it is inside of a system
   * call that has yet to write its result (clone, vfork, exec), or a signal is on its way to it.
   */
  #stopAtRest(tracee: Tracee): boolean {
    this.#tracer.interrupt(tracee);
    let state = this.#tracer.collect(tracee, 200);
    for (let i = 0; state === 'stopped' && i < 8; i++) {
      if (tracee.stop.kind === 'interruptStop' || tracee.stop.kind === 'groupStop') return true;
      this.#tracer.leadIntoTrap(tracee, 200);
      state = tracee.state;
    }
    this.#tracer.resume(tracee);
    return false;
  }

  /** Sleeping threads first, those that wait on a timer last: the busy ones are not held up. */
  #candidates({ onlyWaiting }: Purpose): readonly Tracee[] {
    const ranked: { tracee: Tracee; rank: number }[] = [];
    for (const tracee of this.#tracer.tracees.values()) {
      if (tracee.pid !== this.#memory.pid || tracee.isVforkChild) continue;
      const syscall = readBlockingSyscall(tracee.pid, tracee.tid)?.number;
      if (onlyWaiting && (syscall === undefined || !isWait(syscall))) continue;
      const entry = { tracee, rank: rankOf(tracee, syscall) };
      ranked.push(entry);
      if (entry.rank === 0) break;
    }
    return ranked.sort((a, b) => a.rank - b.rank).map((r) => r.tracee);
  }
}

function rankOf(tracee: Tracee, syscall: number | undefined): number {
  const state = readThreadStat(tracee.pid, tracee.tid)?.state;
  if (state === 'D') return 3;
  if (state !== 'S') return 2;
  return syscall !== undefined && usesRestartBlock(syscall) ? 1 : 0;
}
