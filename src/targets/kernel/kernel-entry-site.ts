import type { Architecture } from '../../arch/architecture.js';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import { isSameCode, planDisplacement } from './kernel-displacement.js';
import { type ReplacedFunction, VMLINUX } from './kernel-objects.js';
import type { RegisteredKernelFunction } from './kernel-registry.js';
import {
  COPY_BYTES,
  copyBehind,
  fentryOffset,
  findFentry,
  findFentryNop,
  JUMP_BYTES,
} from './kernel-trampoline.js';
import type { KernelAddresses } from './running-kernel.js';

/** As much of a function as a redirect can have to do with. */
export const ENTRY_BYTES = 32;

export type EntrySite = Pick<RegisteredKernelFunction, 'site' | 'original' | 'isDisplaced'>;

/** What livegraft itself needs as it is: it calls it, stops there, knows by it that a task is being created, or which
 * task runs. */
const NEEDED: ReadonlySet<string> = new Set([
  ...['copy_process', 'do_syscall_64', 'x64_sys_call', '__switch_to_asm', '__switch_to'],
  ...['module_alloc', 'execmem_alloc', 'set_memory_ro', 'set_memory_x'],
]);

/** `call`, `jmp` and `int3`. */
const PROBES: ReadonlySet<number> = new Set([0xe8, 0xe9, 0xcc]);
const STOP_TRACING = 'stop tracing or probing it in the guest';

/** Rejects `function-needed`. */
export function expectNotNeeded({ object, fn }: ReplacedFunction): void {
  if (object !== VMLINUX || !NEEDED.has(fn.name)) return;
  throw new LivegraftError('function-needed', `${fn.name} can't be replaced: livegraft itself works by it`, {
    remedy: 'patch its callers, or what it calls',
    details: { function: fn.name },
  });
}

/**
 * Where a redirect goes: at the nop of ftrace or, in a function that was compiled without, over its first instructions. Of a module
 * the patch says what these are, and that nothing leads into them (`src/build/module-entries.ts`). `entry` is where the function is, `code` its first {@link ENTRY_BYTES} as they are now. Rejects `no-fentry`.
 */
export function findEntrySite(
  kernel: KernelAddresses,
  arch: Architecture,
  { object, fn }: ReplacedFunction,
  entry: number,
  code: Uint8Array,
): EntrySite {
  const nop = findFentryNop(code);
  if (nop !== undefined && nop + JUMP_BYTES <= fn.old.sizeBytes)
    return { site: entry + nop, original: [...code.subarray(nop, nop + JUMP_BYTES)], isDisplaced: false };
  const refuse = (why: string, remedy: string): never => {
    throw new LivegraftError('no-fentry', `${fn.name} at ${hex(entry)} has no fentry nop now, and ${why}`, {
      remedy,
      details: { function: fn.name },
    });
  };
  const other = 'patch its callers';
  const probed = 'its first instructions are not those of the ';
  if (object !== VMLINUX) {
    if (fn.displaced === undefined) {
      if (isProbed(code)) return refuse('the module was compiled for ftrace', STOP_TRACING);
      // It never had one, and who built the patch did not look at its first instructions.
      return refuse(
        `the patch does not say which instructions of ${object} a jump may take the place of, as those do that this version of livegraft builds`,
        `build the patch again, with --module ${object}.ko`,
      );
    }
    const { offset, bytes, relocated } = fn.displaced;
    const expected = Buffer.from(bytes, 'hex');
    const now = code.subarray(offset, offset + expected.length);
    const isFilledIn = (at: number) => relocated.some((field) => at >= field && at < field + 4);
    if (!expected.every((byte, at) => now[at] === byte || isFilledIn(at)))
      return refuse(`${probed}module's file`, 'remove probes from it in the guest');
    return displacedSite(kernel, arch, entry + offset, now, (why) => refuse(why, other));
  }
  const original = kernel.imageBytes(entry, Math.min(ENTRY_BYTES, fn.old.sizeBytes));
  if (original === undefined || findFentry(original, entry, kernel.find('__fentry__')) !== undefined)
    return refuse('it was compiled for ftrace', STOP_TRACING);
  const range = { name: fn.name, address: entry - kernel.offset, sizeBytes: fn.old.sizeBytes };
  const plan = planDisplacement(kernel.image, arch, range);
  if (plan.site === undefined) return refuse(plan.refused, other);
  const { offset, displacedSizeBytes } = plan.site;
  const displaced = code.subarray(offset, offset + displacedSizeBytes);
  if (!isSameCode(arch, displaced, original.subarray(offset, offset + displacedSizeBytes), kernel.offset))
    return refuse(`${probed}image`, 'remove probes from it in the guest');
  return displacedSite(kernel, arch, entry + offset, displaced, (why) => refuse(why, other));
}

/**
 * Whether a call, a jump or a breakpoint of the kernel's tracers is where a function's nop of ftrace would be. The compiler puts none of
 * them there: calls come behind what aligns the stack.
 */
function isProbed(code: Uint8Array): boolean {
  return PROBES.has(code[fentryOffset(code)] ?? 0);
}

/** What a copy needs is known before anything is allocated: as far away as the trampoline can be. */
function displacedSite(
  kernel: KernelAddresses,
  arch: Architecture,
  site: number,
  displaced: Uint8Array,
  refuse: (why: string) => never,
): EntrySite {
  const far = displaceEntry(arch, { site, original: [...displaced], trampoline: kernel.expect('_etext') });
  return typeof far === 'string' ? refuse(far) : { site, original: [...displaced], isDisplaced: true };
}

/** The copy of displaced instructions, as it lies behind a trampoline; why there can be none. */
export function displaceEntry(
  arch: Architecture,
  { site, original, trampoline }: Pick<RegisteredKernelFunction, 'site' | 'original' | 'trampoline'>,
): Uint8Array | string {
  const whole = {
    ...{ offset: 0, jumpSizeBytes: JUMP_BYTES, displacedSizeBytes: original.length },
    hopOffset: undefined,
  };
  const code = Uint8Array.from(original);
  const copy = arch.redirector.displace(code, 0, whole, site, copyBehind(trampoline));
  if ('refused' in copy) return copy.refused;
  return copy.bytes.length <= COPY_BYTES ? copy.bytes : 'its first instructions are too long to move';
}
