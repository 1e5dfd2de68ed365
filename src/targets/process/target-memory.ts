import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { ProcessMemory } from './memory.js';
import { PAGE_BYTES } from './placement.js';
import { type Mapping, memoryFolder, readMappings } from './proc.js';
import type { MemoryRange } from './registry.js';
import { findLanding } from './remote-call.js';
import { SYS_close, SYS_memfd_create, SYS_mmap, SYS_munmap, SYS_sigaltstack } from './syscalls.js';
import { type Purpose, ThreadBorrower } from './thread-borrower.js';
import type { Tracee, Tracer } from './tracer.js';

export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const PROT_EXEC = 4;
const MAP_PRIVATE = 2;
const MAP_FIXED_NOREPLACE = 0x100000;
const MFD_CLOEXEC = 1;

const MAP_FLAGS = MAP_PRIVATE | MAP_FIXED_NOREPLACE;

/** Code is never writable, nor made executable later: a filter that forbids both lets this through. */
const TO_MAP: Purpose = {
  what: 'map memory',
  calls: [
    { number: SYS_memfd_create, args: [0, MFD_CLOEXEC] },
    ...[PROT_READ | PROT_EXEC, PROT_READ, PROT_READ | PROT_WRITE].map((protection) => ({
      number: SYS_mmap,
      args: [0, PAGE_BYTES, protection, MAP_FLAGS],
    })),
    { number: SYS_munmap, args: [0, PAGE_BYTES] },
    { number: SYS_close },
  ],
  onlyWaiting: false,
};

export interface PartToMap {
  readonly address: number;
  readonly sizeBytes: number;
  readonly protection: number;
}

/** Every mapping of ours is a memfd whose name begins so, private to the process (fork copies it). */
const MEMFD_PREFIX = 'livegraft:';

export function isOwnMapping(mapping: Mapping): boolean {
  return mapping.name.startsWith(`/memfd:${MEMFD_PREFIX}`);
}

/** Maps and unmaps memory in the target by borrowing one of its threads. */
export class TargetMemory {
  readonly #memory: ProcessMemory;
  readonly #borrower: ThreadBorrower;

  constructor(tracer: Tracer, memory: ProcessMemory, mappings: readonly Mapping[]) {
    this.#memory = memory;
    this.#borrower = new ThreadBorrower(tracer, memory, findLanding(memory, mappings));
  }

  /**
   * Maps the parts, which lie in one contiguous image, from a new memfd. All or nothing. Addresses that were free a
   * moment ago may be taken by now: `address-taken` then, to be tried again elsewhere.
   */
  map(name: string, parts: readonly PartToMap[]): void {
    const base = Math.min(...parts.map((p) => p.address));
    const end = Math.max(...parts.map((p) => p.address + p.sizeBytes));
    this.#borrower.borrow(TO_MAP, (caller) => {
      const text = Buffer.from(`${MEMFD_PREFIX}${name}`.slice(0, 200).replaceAll('\0', ''));
      const argument = caller.placeArgument(Buffer.concat([text, Buffer.of(0)]));
      const fd = expectResult(
        this.#memory.pid,
        'memfd_create',
        caller.call(SYS_memfd_create, argument, MFD_CLOEXEC),
      );
      const mapped: PartToMap[] = [];
      try {
        // Its size is set from outside: one remote call less.
        const own = openSync(`${memoryFolder(this.#memory.pid)}/fd/${fd}`, 'r+');
        try {
          ftruncateSync(own, end - base);
        } finally {
          closeSync(own);
        }
        for (const part of parts) {
          const { address, sizeBytes, protection } = part;
          const result = caller.call(SYS_mmap, address, sizeBytes, protection, MAP_FLAGS, fd, address - base);
          expectResult(this.#memory.pid, 'mmap', result);
          mapped.push(part);
        }
      } catch (error) {
        for (const part of mapped) caller.call(SYS_munmap, part.address, part.sizeBytes);
        throw error;
      } finally {
        caller.call(SYS_close, fd);
      }
    });
  }

  /** Unmaps ranges of ours. Whatever of ours is in them must be out of use. */
  unmap(ranges: readonly { readonly address: number; readonly sizeBytes: number }[]): void {
    if (ranges.length === 0) return;
    const own = (readMappings(this.#memory.pid) ?? []).filter(isOwnMapping);
    this.#borrower.borrow(TO_MAP, (caller) => {
      for (const { address, sizeBytes } of ranges) {
        // Only what is ours: a range in an old record may be something else's by now.
        for (const mapping of own) {
          if (mapping.start < address || mapping.end > address + roundUp(sizeBytes)) continue;
          caller.call(SYS_munmap, mapping.start, mapping.end - mapping.start);
        }
      }
    });
  }

  /**
   * The stack that signal handlers of a thread run on; undefined when it has none, or can't be asked (a seccomp filter,
   * no room). `look` is called meanwhile, the thread stopped with its registers fetched.
   */
  signalStackOf(tracee: Tracee, look: () => void): MemoryRange | undefined {
    return this.#borrower.ask(tracee, [{ number: SYS_sigaltstack }], look, (caller) => {
      const at = caller.placeArgument(Buffer.alloc(STACK_T_BYTES));
      if (caller.call(SYS_sigaltstack, 0, at) !== 0) return undefined;
      const answer = Buffer.from(this.#memory.readExactly(at, STACK_T_BYTES));
      const isDisabled = (answer.readUInt32LE(8) & SS_DISABLE) !== 0;
      return isDisabled
        ? undefined
        : { address: Number(answer.readBigUInt64LE(0)), sizeBytes: Number(answer.readBigUInt64LE(16)) };
    });
  }
}

export function roundUp(sizeBytes: number): number {
  return Math.ceil(sizeBytes / PAGE_BYTES) * PAGE_BYTES;
}

/** `stack_t`: address, flags, size (sigaltstack(2)). */
const STACK_T_BYTES = 24;
const SS_DISABLE = 2;

const EEXIST = 17;

function expectResult(pid: number, call: string, result: number): number {
  if (result >= 0) return result;
  if (result === -EEXIST) {
    throw new LivegraftError(
      'address-taken',
      `process ${pid}: the address chosen for the patch was taken meanwhile`,
      {
        remedy: 'try again',
      },
    );
  }
  throw new LivegraftError(
    'map-failed',
    `process ${pid}: ${call} in the process failed with errno ${-result}`,
    {
      remedy:
        'check its limits (RLIMIT_AS, RLIMIT_NOFILE, vm.max_map_count, a memory cgroup) and policies (SELinux execmem)',
      details: { pid, call, errno: -result, value: hex(result) },
    },
  );
}
