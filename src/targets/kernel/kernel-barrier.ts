import type { InstructionDecoder } from '../../arch/architecture.js';
import { hex } from '../../base/brand.js';
import { type BarrierCandidate, badBarrierError, whyNoBarrier } from '../barrier-check.js';
import type { KernelRange, RegisteredKernelBarrier } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { encodeJump, encodeTaskStore, findFentryNop, JUMP_BYTES } from './kernel-trampoline.js';

/**
 * Where every task is about to go back to user mode, with nothing on its stack but the entry code, which can't be replaced (no
 * function of it has an fentry nop): the kernel's edge, at which kGraft migrated tasks. It exists from 5.8 on (kernel/entry/common.c), as a
 * function of its own up to 6.7.
 */
const KERNEL_EDGE = 'exit_to_user_mode_prepare';

export type PlannedBarrier = Omit<RegisteredKernelBarrier, 'trampoline'>;

/**
 * Finds the barrier of a patch in the running kernel: a declared function, or the kernel's edge where it can be one. Undefined
 * where nothing was declared and the edge can't. Throws `bad-barrier` for a declared one that can be seen to be wrong. `replaced`: all
 * code that leaves, split parts too; `isUsed`: whether the new code refers to an address, which leaves when the patch is reverted.
 */
export async function findBarrier(
  session: KernelSession,
  decoder: InstructionDecoder,
  declared: string | undefined,
  replaced: readonly KernelRange[],
  isPatched: (address: number) => boolean,
  isUsed: (address: number) => boolean,
): Promise<PlannedBarrier | undefined> {
  const { kernel, sliced, data } = session;
  const name = declared ?? KERNEL_EDGE;
  const refuse = (why: string): undefined => {
    if (declared === undefined) return undefined;
    throw badBarrierError(name, why, 'task');
  };
  const all = kernel.image.symbols.findAll(name);
  const [symbol] = all;
  if (symbol === undefined || all.length > 1)
    return refuse(`the kernel has ${all.length} functions of that name`);
  const entry = kernel.relocate(symbol.address);
  const leaving: BarrierCandidate['leaving'][number][] = [];
  for (const { name, address, sizeBytes } of replaced)
    leaving.push({ name, address, code: await data.readMemory(address, sizeBytes) });
  const why = whyNoBarrier(decoder, { name, entry, leaving, isPatched, isUsed });
  if (why !== undefined) return refuse(why);
  const code = await sliced.readMemory(entry, 16);
  const offset = findFentryNop(code);
  if (offset === undefined) return refuse(`at ${hex(entry)}, it does not begin with a fentry nop now`);
  return { name, site: entry + offset, original: [...code.subarray(offset, offset + JUMP_BYTES)] };
}

type WriteCode = (address: number, code: Uint8Array) => Promise<void>;

/** Every task that passes sets its state word to `value`, from then on. The code is written before the jump to it. */
export async function armBarrier(
  session: KernelSession,
  barrier: RegisteredKernelBarrier,
  value: number,
  write: WriteCode,
): Promise<void> {
  const { site, original, trampoline } = barrier;
  const code = encodeTaskStore({
    at: trampoline,
    ...session.currentTask,
    value,
    next: site + original.length,
  });
  await write(trampoline, code);
  await write(site, encodeJump(site, trampoline));
}

/** A task that is in the trampoline just now still sets its state: the value must stay what it was meant to be until all have. */
export async function disarmBarrier(barrier: RegisteredKernelBarrier, write: WriteCode): Promise<void> {
  await write(barrier.site, Uint8Array.from(barrier.original));
}
