import { expectNever } from '../base/errors.js';
import type { Direction, ReportedFrame, StragglerReason } from '../engine/target.js';

/** All that can be said of a task that a transition has not switched. */
export interface StragglerReport {
  /** A thread id; of a kernel's task its pid in the first namespace, 0 for idle tasks. */
  readonly tid: number;
  readonly name: string;
  /** ISO 8601: when it was first refused; of a thread that was never tried, when the transition began. */
  readonly since: string | undefined;
  /** Refusals over all runs that have left a record. */
  readonly attempts: number;
  /** When the reason was seen: `now`, or, while another livegraft holds the threads, the time of its last look. */
  readonly seenAt: string | 'now';
  /** Undefined when nothing holds it: the next try switches it. */
  readonly reason: StragglerReason | undefined;
  /** Innermost first. */
  readonly frames: readonly ReportedFrame[];
  /** Index of the frame that blocks it, where one does. */
  readonly blockingFrame: number | undefined;
  /** What would let it switch. */
  readonly releasedBy: string;
}

/** Index of the frame that blocks a task, where one does. */
export function blockingFrame(reason: StragglerReason | undefined): number | undefined {
  if (reason?.kind === 'busy') return reason.frame;
  // An unreliable walk ends where it could not go on.
  return reason?.kind === 'unreliable' && reason.frames.length > 0 ? reason.frames.length - 1 : undefined;
}

/** What would let a task switch. `waitsIn`: the call in which it sleeps, where that is known. */
export function releasedBy(
  reason: StragglerReason | undefined,
  direction: Direction,
  waitsIn: string | undefined,
  barrier: string | undefined,
): string {
  const orBarrier = barrier === undefined ? '' : `, or a call of ${barrier}`;
  const wait = waitsIn === undefined ? '' : `; it waits in ${waitsIn}, and goes on when that ends`;
  switch (reason?.kind) {
    case undefined:
      return 'nothing holds it: it switches when the command is repeated';
    case 'busy': {
      const version = direction === 'patch' ? 'the version that is being replaced' : 'the new version';
      return `the return of ${reason.function} (${version})${orBarrier}${wait}`;
    }
    case 'unreliable':
      return `a stack that can be proven: it is looked at again elsewhere, at system calls too${orBarrier}${wait}`;
    case 'unstoppable':
      return 'its way out of an uninterruptible sleep: a vfork child that executes or exits, a disk or network file system that answers';
    case 'waiting':
      return 'a look at its stack: it has not been tried yet';
    case 'beforeBarrier':
      return `a call of ${reason.barrier}${wait}`;
    default:
      return expectNever(reason, 'straggler reason');
  }
}
