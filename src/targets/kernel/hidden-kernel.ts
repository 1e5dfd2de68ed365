import { LivegraftError } from '../../base/errors.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import type { GdbClient } from './gdb-client.js';
import { tryRead } from './gdb-memory.js';
import type { GuestSlices, KernelSight } from './guest-slices.js';
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

/** The interrupt of a CPU's own timer, which ticks while a program runs (arch/x86/kernel/apic/apic.c, from 5.8 on). */
const TICK = 'sysvec_apic_timer_interrupt';

/** How a stop is made where the kernel is seen, once it is known where `witness` lies. */
export function sightOf(kernel: KernelAddresses, witness: number): KernelSight {
  return { witness, visited: kernel.find(TICK) };
}

/** The same for a kernel that page-table isolation may hide; undefined where it does not. */
export async function findSight(
  slices: Pick<GuestSlices, 'readMemory' | 'resume' | 'sight'>,
  kernel: KernelAddresses,
  features: FieldPlace | undefined,
): Promise<KernelSight | undefined> {
  const data = kernel.find('boot_cpu_data');
  if (data === undefined || features === undefined) return undefined;
  const address = data + features.offset + 4 * PTI.word;
  // It may be hidden in this stop, though the kernel's text is seen.
  slices.resume();
  const sight = sightOf(kernel, address);
  slices.sight = sight;
  const bytes = await slices.readMemory(address, 4);
  const word = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  return ((word >>> PTI.bit) & 1) === 1 ? sight : undefined;
}

/** CPU_ENTRY_AREA_RO_IDT (arch/x86/include/asm/cpu_entry_area.h): programs' page tables have it, too. */
const GATES = -0x200_0000_0000;
const GATE_BYTES = 16;
/** Handlers of exceptions that every kernel has, by vector (arch/x86/include/asm/idtentry.h, from 5.8 on). */
const HANDLERS: readonly (readonly [number, string])[] = [
  ...[[0, 'asm_exc_divide_error'] as const, [6, 'asm_exc_invalid_op'] as const],
  ...[[13, 'asm_exc_general_protection'] as const, [14, 'asm_exc_page_fault'] as const],
];

/**
 * What KASLR added to the kernel's addresses, by the processor's table of interrupts, whose gates lead to its handlers (Intel SDM volume 3, section
 * 6.14.1). Undefined when it is not that kernel's.
 */
export async function offsetByGates(
  client: Pick<GdbClient, 'readMemory'>,
  image: KernelImage,
): Promise<number | undefined> {
  const bytes = await tryRead(client, GATES, GATE_BYTES * 15);
  if (bytes === undefined) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const offsets = HANDLERS.map(([vector, name]) => {
    const gate = vector * GATE_BYTES;
    const low = view.getUint16(gate, true) + view.getUint16(gate + 6, true) * 2 ** 16;
    const symbol = image.symbols.findUnique(name);
    return symbol && low + view.getInt32(gate + 8, true) * 2 ** 32 - symbol.address;
  });
  return offsets.every((offset) => offset === offsets[0]) ? offsets[0] : undefined;
}
