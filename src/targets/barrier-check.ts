import type { InstructionDecoder } from '../arch/architecture.js';
import { callsDirectly } from '../arch/direct-calls.js';
import { LivegraftError } from '../base/errors.js';

/** A function that is to be a barrier, against the patch that it is for. Addresses are the target's. */
export interface BarrierCandidate {
  readonly name: string;
  readonly entry: number;
  /** The code that leaves when the patch comes: of each function the version below, split parts too. */
  readonly leaving: readonly { readonly name: string; readonly address: number; readonly code: Uint8Array }[];
  /** Whether an earlier patch replaces the function at an address. */
  readonly isPatched: (address: number) => boolean;
  /** Whether the new code, which leaves when the patch is reverted, refers to an address. */
  readonly isUsed: (address: number) => boolean;
}

/**
 * Why a function can be seen to be no barrier: a task that passes it may be in the middle of code that leaves. Undefined where nothing
 * speaks against it; calls through others and through pointers are not followed.
 */
export function whyNoBarrier(decoder: InstructionDecoder, candidate: BarrierCandidate): string | undefined {
  const { entry, leaving, isPatched, isUsed } = candidate;
  if (leaving.some(({ address, code }) => entry >= address && entry < address + code.length))
    return 'the patch replaces it';
  if (isPatched(entry)) return 'an earlier patch replaces it';
  const caller = leaving.find(({ address, code }) => callsDirectly(decoder, code, address, entry));
  if (caller !== undefined) return `${caller.name}, which is replaced, calls it`;
  return isUsed(entry) ? 'the code of the patch calls it' : undefined;
}

/** `tasks`: what the target calls those that pass. */
export function badBarrierError(name: string, why: string, tasks: 'task' | 'thread'): LivegraftError {
  return new LivegraftError('bad-barrier', `${name} can't be the barrier of this patch: ${why}`, {
    remedy: `declare a function that no ${tasks} calls while it is in a function of the patch, or none`,
    details: { barrier: name, why },
  });
}
