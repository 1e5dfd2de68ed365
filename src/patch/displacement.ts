import type { Architecture, RedirectRefusal, RedirectSite } from '../arch/architecture.js';

/**
 * What redirects over the first instructions of a function of a kernel or a module rely on, as far as code alone tells: whole
 * instructions of five bytes at least, none of which calls, and nothing in the text that leads into the middle of them.
 */

const JUMP_BYTES = 5;
/** How far a short jump reaches, with its own two bytes. */
const SHORT_REACH = 130;

export interface CodeRange {
  readonly name: string;
  readonly address: number;
  readonly sizeBytes: number;
}

/** Of code at one place. */
export interface CodeBlock {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** The bytes that a redirect overwrites. */
export interface Bounds {
  readonly low: number;
  readonly high: number;
}

/** Whether an address lies behind the first of the bytes: at the first one the redirect is met, as by any caller. */
export function isInside(address: number, { low, high }: Bounds): boolean {
  return address > low && address < high;
}

/** The first instructions of a function that are overwritten, or why none can be. */
export function chooseDisplaced(
  arch: Architecture,
  text: CodeBlock,
  fn: CodeRange,
): { readonly site: RedirectSite; readonly range: Bounds; readonly refused?: undefined } | RedirectRefusal {
  const start = fn.address - text.address;
  const site = arch.redirector.chooseSite(text.bytes, start, fn.sizeBytes, fn.address);
  if ('refused' in site) return site;
  if (site.hopOffset !== undefined || site.displacedSizeBytes < JUMP_BYTES)
    return { refused: 'its first instructions have less than five bytes' };
  const low = fn.address + site.offset;
  const range = { low, high: low + site.displacedSizeBytes };
  for (let at = low; at < range.high; ) {
    const instruction = arch.decoder.decode(text.bytes, at - text.address, at);
    if (instruction === undefined) return { refused: "its first instructions can't be decoded" };
    if (['call', 'indirectCall', 'systemCall'].includes(instruction.flow))
      return { refused: 'it calls another function at once: a task might wait behind the copy of that call' };
    at += instruction.lengthBytes;
  }
  return { site, range };
}

/**
 * Something that looks like a direct jump or call to behind the first byte, or like the loading of an address there. Near jumps are looked for at every byte of the
 * text, short ones around the function, where that is not the function's own code, which was decoded.
 */
export function findLeadInto(
  { bytes, address }: CodeBlock,
  fn: CodeRange,
  range: Bounds,
): number | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  // Counted from the start of the text: small numbers are quick.
  const bounds = { low: range.low - address, high: range.high - address };
  for (let at = 1; at + 4 <= bytes.length; at++) {
    const target = at + 4 + view.getInt32(at, true);
    if (isInside(target, bounds) && (isNearBranch(bytes, at) || isLoadedAddress(bytes, at)))
      return address + at - 1;
  }
  return findShortBranch(bytes, fn.address - address, fn.sizeBytes, bounds.high, address, (target) =>
    isInside(target, bounds),
  );
}

/** A short jump or branch around a function, but not in its own code, by where it leads to. Offsets are those in `bytes`. */
function findShortBranch(
  bytes: Uint8Array,
  start: number,
  sizeBytes: number,
  high: number,
  address: number,
  leadsTo: (target: number) => boolean,
): number | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const last = Math.min(bytes.length, high + SHORT_REACH);
  for (let at = Math.max(1, start - SHORT_REACH); at < last; at++) {
    if (at > start && at < start + sizeBytes) continue;
    const opcode = bytes[at - 1] as number;
    const isShort = opcode === 0xeb || (opcode & 0xf0) === 0x70 || (opcode >= 0xe0 && opcode <= 0xe3);
    if (isShort && leadsTo(at + 1 + view.getInt8(at))) return address + at - 1;
  }
  return undefined;
}

/** Places of what looks like calls of a function, or jumps to it, in the text that is given. */
export function findCallers({ bytes, address }: CodeBlock, fn: CodeRange): readonly number[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const entry = fn.address - address;
  const found: number[] = [];
  for (let at = 1; at + 4 <= bytes.length; at++)
    if (at + 4 + view.getInt32(at, true) === entry && isNearBranch(bytes, at)) found.push(address + at - 1);
  const short = findShortBranch(bytes, entry, fn.sizeBytes, entry, address, (target) => target === entry);
  return short === undefined ? found : [...found, short];
}

/** Whether the four bytes at `at` are the displacement of a call, a jump or a branch. */
function isNearBranch(bytes: Uint8Array, at: number): boolean {
  const opcode = bytes[at - 1] as number;
  return opcode === 0xe8 || opcode === 0xe9 || ((opcode & 0xf0) === 0x80 && bytes[at - 2] === 0x0f);
}

/** Whether the four bytes at `at` are the displacement of a `lea` from the instruction pointer. */
function isLoadedAddress(bytes: Uint8Array, at: number): boolean {
  return ((bytes[at - 1] as number) & 0xc7) === 0x05 && bytes[at - 2] === 0x8d;
}
