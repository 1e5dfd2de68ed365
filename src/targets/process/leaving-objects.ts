import { LivegraftError } from '../../base/errors.js';
import { type CallbackReport, passMomentAtOnce } from '../../engine/callbacks.js';
import { LEAVING_MOMENTS } from '../../engine/objects.js';
import type { Doorbell } from './doorbell.js';
import * as native from './native.js';
import { callbackObjectsOf } from './patch-callbacks.js';
import { readBlockingSyscall } from './proc.js';
import type { ProcessSession } from './process-session.js';
import { ORIG_RAX, RAX, RDI, RSI, readRegister } from './registers.js';
import type { MemoryRange, RegisteredPatch } from './registry.js';
import { findLanding, RemoteCaller } from './remote-call.js';
import { SYS_futex, SYS_munmap } from './syscalls.js';
import type { Purpose, ThreadBorrower } from './thread-borrower.js';
import { PATIENT_TIMEOUT_MS, sleepSync, type Tracee } from './tracer.js';

/** How long a thread may take from its ring to what it unmaps, callbacks left out. */
const UNMAP_TIMEOUT_MS = 2000;
const FIND_TIMEOUT_MS = 200;
const [ENOSYS, ERESTARTNOINTR] = [38, 513];

/** An object that has callbacks of patches, and may be unloaded. */
interface Leaver {
  readonly name: string;
  readonly place: MemoryRange;
  readonly patches: readonly RegisteredPatch[];
}

/** Objects of a process's patches whose callbacks have a turn when they go. */
export function findLeavers(patches: readonly RegisteredPatch[]): readonly Leaver[] {
  const leavers = new Map<number, Leaver>();
  for (const patch of patches) {
    for (const { name, part } of patch.objects) {
      if (part?.callbacks === undefined || !part.module.mayLeave) continue;
      const { address } = part.module;
      const known = leavers.get(address);
      leavers.set(address, {
        ...{ name, place: part.module },
        patches: [...(known?.patches ?? []), patch],
      });
    }
  }
  return [...leavers.values()];
}

/**
 * Answers a ring by which a thread says that it is about to unmap objects, and has the callbacks of those run that go. The dynamic
 * linker does not say which: so the thread is followed from one system call to the next, up to the `munmap` of one, or until it rings
 * again. Where it stands before that call the object is there still, nothing runs it any more, and the thread itself runs the
 * callbacks: it returns into the call by itself, so that nothing is unmapped under a callback should livegraft be killed. Threads must
 * be seized.
 */
export function attendLeaving(
  session: ProcessSession,
  bell: Doorbell,
  onRun: (report: CallbackReport) => void,
): void {
  const { rings } = bell;
  const leavers = findLeavers(session.registry?.patches ?? []);
  const tracee = leavers.length === 0 ? undefined : findRinger(session, bell);
  bell.answer(rings);
  if (tracee === undefined) return;
  const thread = new UnloadingThread(session, tracee, () => bell.rings === rings);
  try {
    for (let range = thread.runToUnmap(); range !== undefined; range = thread.runToUnmap()) {
      const { address, sizeBytes } = range;
      const leaver = leavers.find(({ place }) => overlap(place, { address, sizeBytes }));
      if (leaver !== undefined) runCallbacks(session, thread, leaver, onRun);
    }
  } finally {
    if (tracee.state === 'stopped') session.tracer.resume(tracee);
  }
}

function runCallbacks(
  session: ProcessSession,
  thread: UnloadingThread,
  { name, patches }: Leaver,
  onRun: (report: CallbackReport) => void,
): void {
  const { tracer, memory, mappings } = session;
  const target = { tracer, memory, mappings, inspector: session.inspector(), borrower: thread };
  for (const patch of patches) {
    const objects = callbackObjectsOf(target, patch).filter((object) => object.name === name);
    for (const moment of LEAVING_MOMENTS) passMomentAtOnce(objects, moment, onRun);
  }
}

/** The thread that waits at the doorbell, stopped. It waits a millisecond at a time. */
function findRinger({ tracer, pid }: ProcessSession, bell: Doorbell): Tracee | undefined {
  const until = performance.now() + FIND_TIMEOUT_MS;
  do {
    for (const tracee of [...tracer.tracees.values()]) {
      const call = readBlockingSyscall(pid, tracee.tid);
      if (tracee.pid !== pid || call?.number !== SYS_futex || call.first !== bell.answerAddress) continue;
      tracer.interrupt(tracee);
      return tracer.collect(tracee, PATIENT_TIMEOUT_MS) === 'stopped' ? tracee : undefined;
    }
    tracer.attend();
    sleepSync(0.2);
  } while (performance.now() < until);
  return undefined;
}

/** A thread that unloads objects, led from one of its system calls to the next. */
class UnloadingThread implements Pick<ThreadBorrower, 'borrow'> {
  readonly #session: ProcessSession;
  readonly #tracee: Tracee;
  readonly #isUnloading: () => boolean;
  /** It stands before the `munmap` of this. */
  #range: MemoryRange | undefined;

  constructor(session: ProcessSession, tracee: Tracee, isUnloading: () => boolean) {
    this.#session = session;
    this.#tracee = tracee;
    this.#isUnloading = isUnloading;
  }

  /** Lets it go on to the next `munmap`, and stand before it; undefined when there is none any more. */
  runToUnmap(): MemoryRange | undefined {
    const { tracer } = this.#session;
    const tracee = this.#tracee;
    const until = performance.now() + UNMAP_TIMEOUT_MS;
    this.#range = undefined;
    while (this.#isUnloading() && performance.now() < until) {
      const stop = tracer.runBesideOthers(tracee, until - performance.now());
      if (stop === undefined || tracee.state !== 'stopped') break;
      if (stop.kind !== 'syscallStop' || !tracer.fetchRegisters(tracee)) continue;
      const { registers } = tracee;
      const begins = readRegister(registers, RAX) === -ENOSYS;
      if (!begins || readRegister(registers, ORIG_RAX) !== SYS_munmap) continue;
      this.#range = { address: readRegister(registers, RDI), sizeBytes: readRegister(registers, RSI) };
      break;
    }
    return this.#range;
  }

  /** It makes the call again when it comes back, and is stopped before it for the next one. */
  borrow<T>(purpose: Purpose, work: (caller: RemoteCaller) => T): T {
    const { tracer, memory, mappings } = this.#session;
    const tracee = this.#tracee;
    if (this.#range === undefined && this.runToUnmap() === undefined)
      throw new LivegraftError(
        'no-thread-to-borrow',
        `thread ${tracee.tid} did not come back to ${purpose.what}`,
      );
    // As if the call had been interrupted: whoever gives the thread its registers back, it is made anew.
    native.pokeRegister(tracee.tid, RAX, -ERESTARTNOINTR);
    const caller = new RemoteCaller(tracer, tracee, memory, findLanding(memory, mappings), purpose.calls);
    try {
      return work(caller);
    } finally {
      caller.restore();
      this.#range = undefined;
    }
  }
}

function overlap(a: MemoryRange, b: MemoryRange): boolean {
  return a.address < b.address + b.sizeBytes && b.address < a.address + a.sizeBytes;
}
