import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { EntryState } from '../../engine/objects.js';
import type { ProcessMemory } from './memory.js';
import { PAGE_BYTES } from './placement.js';
import { fromHex } from './redirect-plan.js';
import type { MemoryRange, Redirect, RegisteredFunction } from './registry.js';

/** What a function's entry can hold with respect to one patch: `gated` goes by a byte of the patch's part for the object. */
export type HeldEntry = EntryState | 'gated';

export interface EntryWrite {
  readonly function: string;
  readonly site: MemoryRange;
  /** What the site held when the write was planned. */
  readonly before: Buffer;
  readonly bytes: Buffer;
  /** No thread may be in here either. */
  readonly keepOut?: MemoryRange;
}

/**
 * The writes that bring every entry to `to`, those that hold it already left out. Where a short jump goes through
 * padding, the padding is written first when the jump appears and last when it disappears.
 */
export function planEntryWrites(
  memory: ProcessMemory,
  functions: readonly Pick<RegisteredFunction, 'name' | 'redirect' | 'restores'>[],
  to: HeldEntry,
): readonly EntryWrite[] {
  const writes: EntryWrite[] = [];
  for (const { name, redirect, restores } of functions) {
    const site = expectKnownEntry(memory, name, redirect.site, redirect, to);
    const hop =
      redirect.hop === undefined
        ? undefined
        : expectKnownEntry(memory, name, redirect.hop.site, redirect.hop, to);
    const disappears = to === 'below' || (to === 'direct' && restores === true);
    for (const write of disappears ? [site, hop] : [hop, site]) if (write !== undefined) writes.push(write);
  }
  return writes;
}

/** What an entry holds now: one of the patch's states, or `foreign` bytes that livegraft did not put there. */
export function entryState(
  memory: ProcessMemory,
  { redirect }: Pick<RegisteredFunction, 'redirect'>,
): HeldEntry | 'foreign' {
  const holds = (site: MemoryRange) => memory.readExactly(site.address, site.sizeBytes).toString('hex');
  const { hop } = redirect;
  const jump = hop ?? redirect;
  const now = holds(jump.site);
  if (now === jump.below) return 'below';
  if (now !== jump.choosing && now !== jump.direct && now !== jump.gated) return 'foreign';
  // The long jump in the padding counts only once the short one leads there.
  if (hop !== undefined && holds(redirect.site) !== redirect.choosing) return 'below';
  if (now === jump.gated) return 'gated';
  return now === jump.choosing ? 'choosing' : 'direct';
}

/** The bytes that no thread may be in the middle of while `writes` happen. */
export function isInsideWrites(writes: readonly EntryWrite[], address: number): boolean {
  return writes.some(
    ({ site, keepOut }) =>
      (address > site.address && address < site.address + site.sizeBytes) ||
      (keepOut !== undefined && address >= keepOut.address && address < keepOut.address + keepOut.sizeBytes),
  );
}

/**
 * Writes what the entries hold already. The kernel then copies the pages of code, and this process compiles its own,
 * before the running threads are held for the writes that count.
 */
export function rehearseEntries(memory: ProcessMemory, writes: readonly EntryWrite[]): void {
  writeEntries(
    memory,
    writes.map((write) => ({
      ...write,
      bytes: memory.readExactly(write.site.address, write.site.sizeBytes),
    })),
  );
}

/** Whether every site still holds what it held when the write was planned: the object may have been unloaded since. */
export function areCurrent(memory: ProcessMemory, writes: readonly EntryWrite[]): boolean {
  return writes.every(({ site, before }) => {
    const now = Buffer.alloc(site.sizeBytes);
    return memory.read(site.address, now) === site.sizeBytes && now.equals(before);
  });
}

/** Writes all entries, or puts back what it has written and throws. No thread may run the target's code meanwhile. */
export function writeEntries(memory: ProcessMemory, writes: readonly EntryWrite[]): void {
  const undo: { readonly at: number; readonly bytes: Buffer }[] = [];
  try {
    for (const { site, before, bytes } of writes) {
      undo.unshift({ at: site.address, bytes: before });
      memory.write(site.address, bytes);
    }
  } catch (cause) {
    for (const { at, bytes } of undo) memory.write(at, bytes);
    throw new LivegraftError(
      'entry-unwritable',
      `process ${memory.pid}: an entry could not be written; all are as before`,
      {
        remedy: 'check that the program does not lock its own code (a sealed mapping, mseal(2))',
        cause,
      },
    );
  }
}

/**
 * Writes entries of an object that no thread runs yet, with one write for each page: a livegraft that is killed leaves all
 * or none of a page's.
 */
export function writeByPages(memory: ProcessMemory, writes: readonly EntryWrite[]): void {
  const byPage = new Map<number, EntryWrite[]>();
  for (const write of writes) {
    const page = Math.floor(write.site.address / PAGE_BYTES);
    byPage.set(page, [...(byPage.get(page) ?? []), write]);
  }
  for (const group of byPage.values()) {
    const start = Math.min(...group.map(({ site }) => site.address));
    const end = Math.max(...group.map(({ site }) => site.address + site.sizeBytes));
    const bytes = memory.readExactly(start, end - start);
    for (const { site, bytes: entry } of group) entry.copy(bytes, site.address - start);
    memory.write(start, bytes);
  }
}

/** Undefined when the entry holds the wanted bytes; throws when it holds something that is not of this patch. */
function expectKnownEntry(
  memory: ProcessMemory,
  name: string,
  site: MemoryRange,
  states: Pick<Redirect, HeldEntry>,
  to: HeldEntry,
): EntryWrite | undefined {
  const before = memory.readExactly(site.address, site.sizeBytes);
  const now = before.toString('hex');
  const wanted = states[to];
  if (wanted === undefined) throw new Error(`${name} has no gate`);
  if (now === wanted) return undefined;
  if (![states.below, states.choosing, states.direct, states.gated].includes(now)) {
    throw new LivegraftError(
      'entry-changed',
      `function ${name}: its entry at ${hex(site.address)} holds ${now}, which livegraft did not put there (expected ${states.below})`,
      {
        remedy: 'another tool has changed the code (a debugger, a probe): remove it first',
        details: { function: name, address: hex(site.address), found: now, expected: states.below },
      },
    );
  }
  return { function: name, site, before, bytes: fromHex(wanted) };
}
