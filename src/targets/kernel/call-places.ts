import type { Architecture } from '../../arch/architecture.js';
import { LivegraftError } from '../../base/errors.js';
import type { RousePlaces } from './guest-rouser.js';
import type { KernelAddresses } from './running-kernel.js';

/** Addresses in the running kernel. */
export interface CallPlaces {
  /** Where every system call passes with interrupts on. */
  readonly safePoint: number;
  /** A function called in the guest returns here: a loop, which waits should nobody be there to see it. */
  readonly parking: number;
  /** How a guest that does nothing is woken; undefined where its kernel lacks what that takes. */
  readonly rouse: RousePlaces | undefined;
}

/** Throws a LivegraftError `kernel-unsupported` where there are none. */
export function findCallPlaces(kernel: KernelAddresses, arch: Architecture): CallPlaces {
  return {
    safePoint: findSafePoint(kernel, arch),
    parking: findParking(kernel),
    rouse: findRousePlaces(kernel, arch),
  };
}

/** `hlt; jmp` back to it or, in kernels that have no such loop, `pause; jmp`. */
const PARKING_LOOPS = [
  [0xf4, 0xeb, 0xfd],
  [0xf3, 0x90, 0xeb, 0xfc],
];
/** Of the longer one. */
export const PARKING_BYTES = 4;

function findParking(kernel: KernelAddresses): number {
  const { address, bytes } = kernel.image.text;
  for (const loop of PARKING_LOOPS) {
    const at = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).indexOf(Uint8Array.from(loop));
    if (at >= 0) return kernel.relocate(address + at);
  }
  throw new LivegraftError('kernel-unsupported', `${kernel.image.source} has no loop to wait in in its text`);
}

/**
 * Where every system call passes with interrupts on: the entry of `x64_sys_call` (since 6.9), or behind the call of
 * `syscall_enter_from_user_mode` in `do_syscall_64`.
 */
function findSafePoint(kernel: KernelAddresses, arch: Architecture): number {
  const direct = kernel.find('x64_sys_call');
  if (direct !== undefined) return direct;
  const [behind] = findReturns(kernel, arch, 'do_syscall_64', 'syscall_enter_from_user_mode');
  if (behind !== undefined) return behind;
  throw new LivegraftError(
    'kernel-unsupported',
    `${kernel.image.source}: no place was found where system calls begin (in do_syscall_64)`,
  );
}

/** Undefined where one of them is missing. */
function findRousePlaces(kernel: KernelAddresses, arch: Architecture): RousePlaces | undefined {
  const [thread, interrupt, wake] = ['kthreadd_task', 'irq_work_run', 'wake_up_process'].map((name) =>
    kernel.find(name),
  );
  const awake = findReturns(kernel, arch, 'kthreadd', 'schedule');
  // The part of the handler that runs on the interrupt stack, since 5.8.
  const interruptReturns = findReturns(kernel, arch, '__sysvec_irq_work', 'irq_work_run');
  const isWhole =
    thread !== undefined && interrupt !== undefined && wake !== undefined && interruptReturns.length > 0;
  return isWhole && awake.length > 0 ? { thread, awake, interrupt, interruptReturns, wake } : undefined;
}

/** Where direct calls of one function in another return to. */
function findReturns(kernel: KernelAddresses, arch: Architecture, caller: string, callee: string): number[] {
  const { symbols, text } = kernel.image;
  const [from, to] = [symbols.findUnique(caller), symbols.findUnique(callee)];
  const returns: number[] = [];
  if (from === undefined || to === undefined) return returns;
  const start = from.address - text.address;
  for (let at = start; at < start + from.sizeBytes; ) {
    const instruction = arch.decoder.decode(text.bytes, at, text.address + at);
    if (instruction === undefined) break;
    at += instruction.lengthBytes;
    if (instruction.flow === 'call' && instruction.target === to.address)
      returns.push(kernel.relocate(text.address + at));
  }
  return returns;
}
