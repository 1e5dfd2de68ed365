import { LivegraftError } from '../../base/errors.js';
import type { GdbClient } from './gdb-client.js';
import type { GuestSlices } from './guest-slices.js';
import type { FieldPlace, KernelLayout } from './kernel-layout.js';
import type { KernelAddresses } from './running-kernel.js';

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
  if (!(await client.readRegisters(vcpu)).mayHideKernel) return false;
  return client.readMemory(address, 1).then(
    () => false,
    () => true,
  );
}

/** `X86_FEATURE_PTI`, the same from 5.10 to 7.2: the word of the features, and the bit in it. */
const PTI = { word: 7, bit: 11 };

/** Where a kernel keeps what its processor can do, for {@link isolatesPageTables}. To be found while the guest runs: it takes long. */
export function findFeatures(layout: KernelLayout): FieldPlace | undefined {
  return layout.find('cpuinfo_x86', 'x86_capability');
}

/** Data by which is told whether the kernel can be seen, where page-table isolation may hide it; undefined where it does not. */
export async function isolatesPageTables(
  slices: Pick<GuestSlices, 'readMemory' | 'witness'>,
  kernel: KernelAddresses,
  features: FieldPlace | undefined,
): Promise<number | undefined> {
  const data = kernel.find('boot_cpu_data');
  if (data === undefined || features === undefined) return undefined;
  const address = data + features.offset + 4 * PTI.word;
  // It may be hidden just now.
  slices.witness = address;
  const bytes = await slices.readMemory(address, 4);
  const word = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  return ((word >>> PTI.bit) & 1) === 1 ? address : undefined;
}
