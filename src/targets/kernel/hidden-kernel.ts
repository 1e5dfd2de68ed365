import { LivegraftError } from '../../base/errors.js';
import type { GdbClient } from './gdb-client.js';

/** Of CR3 while a program runs whose page tables leave out the kernel (PTI_USER_PGTABLE_BIT in arch/x86/include/asm/pgtable.h). */
const USER_TABLES = 1n << 12n;
/** What comes of reading the kernel's memory where it is hidden. */
const MAY_BE_HIDDEN: ReadonlySet<string> = new Set(['guest-memory', 'guest-memory-file', 'target-gone']);

type Stub = Pick<GdbClient, 'isRunning' | 'interrupt' | 'vcpus' | 'readRegisters' | 'readMemory'>;

/**
 * What to say in place of an error that comes of a guest whose CPUs run programs: with page-table isolation the stub does not see the
 * kernel then. The error itself where that is not so. `address`: data of the kernel that is always there (its text may be left visible). Leaves the guest stopped.
 */
export async function explainHiddenKernel(client: Stub, address: number, error: unknown): Promise<unknown> {
  if (!(error instanceof LivegraftError) || !MAY_BE_HIDDEN.has(error.code)) return error;
  try {
    if (client.isRunning && (await client.interrupt()).kind === 'exited') return error;
    let isHidden = false;
    for (const vcpu of await client.vcpus()) isHidden ||= await hidesKernel(client, vcpu, address);
    if (!isHidden) return error;
  } catch {
    // What went wrong first is what is told.
    return error;
  }
  return new LivegraftError(
    'kernel-hidden',
    "the guest's CPUs run programs, and page-table isolation hides the kernel from who debugs them meanwhile",
    {
      remedy: 'repeat the command when they have less to compute, or boot the guest with nopti',
      details: { cause: error.code },
      cause: error,
    },
  );
}

/** Without isolation a page table may lie anywhere, and the kernel is seen all the same. */
async function hidesKernel(client: Stub, vcpu: string, address: number): Promise<boolean> {
  const registers = await client.readRegisters(vcpu);
  if ((registers.get('cs') & 3n) !== 3n || (registers.get('cr3') & USER_TABLES) === 0n) return false;
  return client.readMemory(address, 1).then(
    () => false,
    () => true,
  );
}
