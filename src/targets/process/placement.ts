import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { Mapping } from './proc.js';

export const PAGE_BYTES = 4096;

/** What a 32-bit displacement reaches, less a margin for the displacement's own instruction. */
const REACH_BYTES = 2 ** 31 - 2 ** 16;
/** The default of vm.mmap_min_addr. */
const LOWEST_ADDRESS = 0x10000;
const USER_END = 2 ** 47 - PAGE_BYTES;
/** Kept free behind the heap and below stacks, which grow. */
const GROWTH_BYTES = 64 * 1024 * 1024;

/**
 * An unmapped range of `sizeBytes` from which every byte reaches every byte of `[near.start, near.end)` by a 32-bit
 * displacement. The nearest one, so that later patches still find room.
 */
export function findFreeRange(
  mappings: readonly Mapping[],
  sizeBytes: number,
  near: { readonly start: number; readonly end: number },
): number {
  const size = Math.ceil(sizeBytes / PAGE_BYTES) * PAGE_BYTES;
  const low = Math.max(LOWEST_ADDRESS, near.end - REACH_BYTES);
  const high = Math.min(USER_END, near.start + REACH_BYTES);
  let best: number | undefined;
  for (const gap of freeGaps(mappings)) {
    const start = Math.max(gap.start, low);
    const end = Math.min(gap.end, high);
    if (end - start < size) continue;
    // Inside the gap, the end that lies nearer to the object.
    const candidate = end <= near.start ? end - size : Math.max(start, Math.min(near.end, end - size));
    const aligned = Math.floor(candidate / PAGE_BYTES) * PAGE_BYTES;
    if (aligned < start) continue;
    if (best === undefined || Math.abs(aligned - near.start) < Math.abs(best - near.start)) best = aligned;
  }
  if (best === undefined) {
    throw new LivegraftError(
      'no-room',
      `no ${size} bytes of free address space within 2 GiB of the object at ${hex(near.start)}-${hex(near.end)}`,
      {
        remedy: 'the process has filled the space around its code; restart it with the fix',
        details: { sizeBytes: size },
      },
    );
  }
  return best;
}

function* freeGaps(mappings: readonly Mapping[]): Iterable<{ start: number; end: number }> {
  let previousEnd = LOWEST_ADDRESS;
  for (const mapping of mappings) {
    const growsDown = mapping.name.startsWith('[stack');
    const end = mapping.start - (growsDown ? GROWTH_BYTES : PAGE_BYTES);
    if (end > previousEnd) yield { start: previousEnd, end };
    const growsUp = mapping.name === '[heap]';
    previousEnd = Math.max(previousEnd, mapping.end + (growsUp ? GROWTH_BYTES : PAGE_BYTES));
  }
  if (USER_END > previousEnd) yield { start: previousEnd, end: USER_END };
}
