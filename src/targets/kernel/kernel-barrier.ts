import type { Architecture, InstructionDecoder } from '../../arch/architecture.js';
import { hex } from '../../base/brand.js';
import { type BarrierCandidate, badBarrierError, whyNoBarrier } from '../barrier-check.js';
import type { KernelBarrierPlace, KernelRange, RegisteredKernelBarrier } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import {
  CALL_OPCODE,
  encodeJump,
  encodeTaskStore,
  findFentryNop,
  JUMP_BYTES,
  REDIRECT_BYTES,
  TASK_STORE_BYTES,
} from './kernel-trampoline.js';

/**
 * The kernel's edge: direct calls and jumps in its entry code (arch/x86/entry) that a task passes between user mode and any code that could
 * be replaced, with nothing on its stack but its own user registers. All of them are there since 5.8, with these names. A task passes the
 * first kind when a system call begins, the jump when an interrupt or an exception goes back to user mode; from 6.7 on nothing in C is left
 * that all ways out call, since the compiler sees them whole (kernel/entry/common.c).
 */
const EDGE: readonly { readonly from: string; readonly to: string; readonly isOptional?: boolean }[] = [
  { from: 'entry_SYSCALL_64_after_hwframe', to: 'do_syscall_64' },
  { from: 'error_return', to: 'swapgs_restore_regs_and_return_to_usermode' },
  // System calls of 32-bit programs, where the kernel has them.
  { from: 'entry_SYSCALL_compat_after_hwframe', to: 'do_fast_syscall_32', isOptional: true },
  { from: 'entry_SYSENTER_compat_after_hwframe', to: 'do_SYSENTER_32', isOptional: true },
  // All entries from user mode of a processor with FRED.
  { from: 'asm_fred_entrypoint_user', to: 'fred_entry_from_user', isOptional: true },
  // `int $0x80` before 6.7, whose way out is not that of an exception.
  { from: 'entry_INT80_compat', to: 'do_int80_syscall_32', isOptional: true },
];
const MOST_PLACES = Math.floor(REDIRECT_BYTES / TASK_STORE_BYTES);

/** What a task is said to wait for that has not passed any of these. */
export const KERNEL_EDGE = "the kernel's edge to user mode";

/** Places without their trampolines. */
export interface PlannedBarrier {
  readonly name: string;
  readonly places: readonly Omit<KernelBarrierPlace, 'trampoline'>[];
}

/** Where a barrier's code lies in a patch's memory that has room for one redirect at an address. */
export function placeBarrier({ name, places }: PlannedBarrier, redirect: number): RegisteredKernelBarrier {
  if (places.length > MOST_PLACES) throw new Error(`no room for ${places.length} places`);
  return {
    name,
    places: places.map((place, i) => ({ ...place, trampoline: redirect + i * TASK_STORE_BYTES })),
  };
}

/**
 * Finds the barrier of a patch in the running kernel: a declared function, or the kernel's edge. Undefined where nothing was
 * declared and the kernel's entry code is not what it is known to be. Throws `bad-barrier` for a declared one that can be seen to be wrong.
 * `replaced`: all code that leaves, split parts too; `isUsed`: whether the new code refers to an address, which leaves when the patch is
 * reverted.
 */
export async function findBarrier(
  session: KernelSession,
  arch: Pick<Architecture, 'decoder'>,
  declared: string | undefined,
  replaced: readonly KernelRange[],
  isPatched: (address: number) => boolean,
  isUsed: (address: number) => boolean,
): Promise<PlannedBarrier | undefined> {
  if (declared === undefined) return findEdge(session, arch.decoder, replaced);
  const { kernel, sliced, data } = session;
  const refuse = (why: string): never => {
    throw badBarrierError(declared, why, 'task');
  };
  const all = kernel.image.symbols.findAll(declared);
  const [symbol] = all;
  if (symbol === undefined || all.length > 1)
    return refuse(`the kernel has ${all.length} functions of that name`);
  const entry = kernel.relocate(symbol.address);
  const leaving: BarrierCandidate['leaving'][number][] = [];
  for (const { name, address, sizeBytes } of replaced)
    leaving.push({ name, address, code: await data.readMemory(address, sizeBytes) });
  const why = whyNoBarrier(arch.decoder, { name: declared, entry, leaving, isPatched, isUsed });
  if (why !== undefined) return refuse(why);
  const code = await sliced.readMemory(entry, 16);
  const offset = findFentryNop(code);
  if (offset === undefined) return refuse(`at ${hex(entry)}, it does not begin with a fentry nop now`);
  const [site, original] = [entry + offset, [...code.subarray(offset, offset + JUMP_BYTES)]];
  return { name: declared, places: [{ site, original, next: site + JUMP_BYTES }] };
}

/** Undefined where one of the places that count was not found as it should be in the running kernel. */
async function findEdge(
  { kernel, sliced }: KernelSession,
  decoder: InstructionDecoder,
  replaced: readonly KernelRange[],
): Promise<PlannedBarrier | undefined> {
  const places: Omit<KernelBarrierPlace, 'trampoline'>[] = [];
  for (const { from, to, isOptional = false } of EDGE) {
    // No kernel has all of them. One that is left out only means that tasks which pass there are switched otherwise.
    if (places.length === MOST_PLACES) break;
    const [code, next] = [kernel.image.symbols.findUnique(from), kernel.find(to)];
    const site =
      code === undefined || next === undefined
        ? undefined
        : await findTransfer(sliced, decoder, kernel.relocate(code.address), code.sizeBytes, next);
    if (site === undefined || next === undefined) {
      if (isOptional) continue;
      return undefined;
    }
    if (replaced.some(({ address, sizeBytes }) => site.at >= address && site.at < address + sizeBytes))
      return undefined;
    places.push({ site: site.at, original: [...site.bytes], next });
  }
  return { name: KERNEL_EDGE, places };
}

/** The one direct call or jump of five bytes in code at an address that leads to `target`, as the running kernel has it. */
async function findTransfer(
  memory: KernelSession['sliced'],
  decoder: InstructionDecoder,
  start: number,
  sizeBytes: number,
  target: number,
): Promise<{ readonly at: number; readonly bytes: Uint8Array } | undefined> {
  const code = await memory.readMemory(start, sizeBytes);
  const found: { readonly at: number; readonly bytes: Uint8Array }[] = [];
  for (let at = 0; at < code.length; ) {
    const instruction = decoder.decode(code, at, start + at);
    if (instruction === undefined) break;
    const { flow, lengthBytes } = instruction;
    if (instruction.target === target && (flow === 'call' || flow === 'jump') && lengthBytes === JUMP_BYTES)
      found.push({ at: start + at, bytes: code.subarray(at, at + JUMP_BYTES) });
    at += lengthBytes;
  }
  return found.length === 1 ? found[0] : undefined;
}

type WriteCode = (address: number, code: Uint8Array) => Promise<void>;

/**
 * Every task that passes sets its state word to `value`, from then on. The code is written before what leads to it. Each place is one
 * instruction, which a call or jump takes the place of: a task is before it or behind it, and a call returns to where it did.
 */
export async function armBarrier(
  session: KernelSession,
  { places }: RegisteredKernelBarrier,
  value: number,
  write: WriteCode,
): Promise<void> {
  for (const { trampoline: at, next } of places)
    await write(at, encodeTaskStore({ at, ...session.currentTask, value, next }));
  for (const { site, original, trampoline } of places) {
    const code = encodeJump(site, trampoline);
    if (original[0] === CALL_OPCODE) code[0] = CALL_OPCODE;
    await write(site, code);
  }
}

/** A task that is in a trampoline just now still sets its state: the value must stay what it was meant to be until all have. */
export async function disarmBarrier({ places }: RegisteredKernelBarrier, write: WriteCode): Promise<void> {
  for (const { site, original } of places) await write(site, Uint8Array.from(original));
}
