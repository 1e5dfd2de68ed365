import type { InstructionDecoder } from '../../arch/architecture.js';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { ProcessMemory } from './memory.js';
import type { Mapping } from './proc.js';
import type { MemoryRange } from './registry.js';
import { isOwnMapping } from './target-memory.js';

/** Memory beyond this is not searched, which is said. */
const SCAN_LIMIT_BYTES = 2 ** 30;
const CHUNK_BYTES = 2 ** 20;

export interface MemoryScan {
  readonly hit: { readonly at: number; readonly value: number } | undefined;
  readonly isComplete: boolean;
}

/** Looks for an aligned 8-byte value that lies in one of the ranges, in private writable memory. */
function scanForPointers(
  memory: ProcessMemory,
  mappings: readonly Mapping[],
  ranges: readonly MemoryRange[],
  /** Where to begin in a mapping; its end to leave it out. */
  from: (mapping: Mapping) => number,
  accept: (value: number, at: number) => boolean,
  attend: () => void,
): MemoryScan {
  const low = Math.min(...ranges.map((r) => r.address));
  const high = Math.max(...ranges.map((r) => r.address + r.sizeBytes));
  const buffer = Buffer.alloc(CHUNK_BYTES);
  const words = new Uint32Array(buffer.buffer, buffer.byteOffset, CHUNK_BYTES / 4);
  const [lowTop, highTop] = [Math.floor(low / 2 ** 32), Math.floor(high / 2 ** 32)];
  let left = SCAN_LIMIT_BYTES;
  for (const mapping of mappings) {
    if (!mapping.writable || !mapping.readable || mapping.shared || isOwnMapping(mapping)) continue;
    for (let at = from(mapping); at < mapping.end; at += CHUNK_BYTES) {
      if (left <= 0) return { hit: undefined, isComplete: false };
      const count = memory.read(at, buffer.subarray(0, Math.min(CHUNK_BYTES, mapping.end - at)));
      left -= count;
      for (let i = 1; i < count / 4; i += 2) {
        const top = words[i] as number;
        if (top < lowTop || top > highTop) continue;
        const value = top * 2 ** 32 + (words[i - 1] as number);
        if (value < low || value >= high) continue;
        const hit = { at: at + (i - 1) * 4, value };
        if (!ranges.some((range) => isInside(range, value)) || !accept(value, hit.at)) continue;
        return { hit, isComplete: false };
      }
      attend();
    }
  }
  return { hit: undefined, isComplete: true };
}

function isInside({ address, sizeBytes }: MemoryRange, value: number): boolean {
  return value >= address && value < address + sizeBytes;
}

/**
 * Refuses when something that looks like a return address into a function to be replaced lies in memory that is no
 * thread's stack: a suspended coroutine or swapcontext would return into it unseen. Saved contexts that are encrypted
 * (setjmp of glibc) can't be seen. `stackPointers` tell which mappings are stacks that the walk covers; `otherStacks`,
 * asked only where something was found, are those that a thread is not on: signal stacks, and what signal handlers on
 * them have interrupted. What lies there is stale, or the walk covers it. `attend` is called every megabyte.
 */
export function expectNoSuspendedContext(options: {
  readonly memory: ProcessMemory;
  readonly mappings: readonly Mapping[];
  readonly stackPointers: readonly number[];
  readonly otherStacks: () => readonly MemoryRange[];
  readonly ranges: readonly MemoryRange[];
  readonly decoder: InstructionDecoder;
  readonly attend: () => void;
}): { readonly isComplete: boolean } {
  const { memory, mappings, stackPointers, ranges, decoder } = options;
  if (ranges.length === 0) return { isComplete: true };
  const isStack = (mapping: Mapping) =>
    mapping.name.startsWith('[stack') || stackPointers.some((sp) => sp >= mapping.start && sp < mapping.end);
  const isReturnAddress = (value: number): boolean => {
    const code = Buffer.alloc(9);
    const count = memory.read(value - code.length, code);
    return count === code.length && decoder.isPrecededByCall(code, code.length);
  };
  const from = (mapping: Mapping) => (isStack(mapping) ? mapping.end : mapping.start);
  let others: readonly MemoryRange[] | undefined;
  const accept = (value: number, at: number): boolean => {
    if (!isReturnAddress(value)) return false;
    others ??= options.otherStacks();
    return !others.some((range) => isInside(range, at));
  };
  const scan = scanForPointers(memory, mappings, ranges, from, accept, options.attend);
  const { hit } = scan;
  if (hit !== undefined) {
    throw new LivegraftError(
      'suspended-context',
      `process ${memory.pid}: ${hex(hit.at)}, in no thread's stack, holds the return address ${hex(hit.value)} into a function to be replaced; a suspended context (coroutine, swapcontext) may return there`,
      {
        remedy:
          'apply when no such context is suspended; or, if the value is stale, repeat with --allow-suspended-contexts',
        details: { pid: memory.pid, at: hex(hit.at), value: hex(hit.value) },
      },
    );
  }
  return { isComplete: scan.isComplete };
}

/**
 * Whether memory may still hold a pointer to a removed patch's functions or data. Return addresses do not count: every
 * stack has been walked and holds none, what looks like one is stale; nor does what lies below a stack pointer.
 */
export function isStillReferenced(
  memory: ProcessMemory,
  mappings: readonly Mapping[],
  stackPointers: readonly number[],
  image: MemoryRange & { readonly textBytes: number; readonly entries: readonly number[] },
  attend: () => void,
): boolean {
  const entries = new Set(image.entries);
  const from = (mapping: Mapping) => {
    const inside = stackPointers.filter((sp) => sp >= mapping.start && sp < mapping.end);
    return inside.length === 0 ? mapping.start : Math.floor(Math.min(...inside) / 8) * 8;
  };
  const counts = (value: number) => value >= image.address + image.textBytes || entries.has(value);
  const scan = scanForPointers(memory, mappings, [image], from, counts, attend);
  return scan.hit !== undefined || !scan.isComplete;
}
