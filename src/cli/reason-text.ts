import { expectNever } from '../base/errors.js';
import type { StragglerReason } from '../engine/target.js';

/** Why a thread has not switched yet, in a few words. */
export function reasonText(reason: StragglerReason): string {
  switch (reason.kind) {
    case 'busy':
      return `busy in ${reason.function} (frame ${reason.frame} of ${reason.frames.length})`;
    case 'unreliable':
      return `its stack can't be proven: ${reason.cause}, ${reason.detail}`;
    case 'unstoppable':
      return reason.detail;
    case 'waiting':
      return 'waiting';
    case 'beforeBarrier':
      return `has not reached ${reason.barrier}`;
    default:
      return expectNever(reason, 'straggler reason');
  }
}
