import { FlowCode, type InstructionSweeper, type InstructionTable, NO_TARGET } from '../instruction-table.js';
import { RawKind, SHAPE, trie } from './header-trie.js';
import { MAX_INSTRUCTION_BYTES } from './scanner.js';

/** The fast path reads this far beyond the first byte of an instruction, whatever it is. */
const MARGIN_BYTES = MAX_INSTRUCTION_BYTES + 1;
/** Instructions take 4 bytes on average; the table is made larger when they are shorter. */
const BYTES_PER_INSTRUCTION = 3;

const BREAKPOINT_BYTE = 0xcc;
/** Of a longer run of breakpoints, which only fills up a page, no more than this many become instructions. */
const MAX_FILL_BYTES = 4096;

/** By {@link RawKind}: how far left and right to shift the 32 bits, then masks and signs that make a value or a target of it. */
const SHIFTS = new Int32Array(8);
const VALUE_MASKS = new Int32Array(8);
const SIGNS = new Int32Array(8);
const TARGET_MASKS = new Int32Array(8);
for (const [kind, shift, valueMask, sign, targetMask] of [
  [RawKind.none, 0, 0, 0, 0],
  [RawKind.byte, 24, -1, 0, 0],
  [RawKind.word, 0, -1, 0, 0],
  [RawKind.negatedByte, 24, -1, -1, 0],
  [RawKind.negatedWord, 0, -1, -1, 0],
  [RawKind.byteTarget, 24, 0, 0, -1],
  [RawKind.wordTarget, 0, 0, 0, -1],
  [RawKind.shortTarget, 16, 0, 0, -1],
] as const) {
  SHIFTS[kind] = shift;
  VALUE_MASKS[kind] = valueMask;
  SIGNS[kind] = sign;
  TARGET_MASKS[kind] = targetMask;
}

export const sweeper: InstructionSweeper = {
  sweep(bytes, start, end, into) {
    const limit = Math.min(end, bytes.length);
    let at = start;
    while (at < limit) {
      const room = Math.ceil((limit - at) / BYTES_PER_INSTRUCTION) + 16;
      into.reserve(into.count + Math.min(room, 1 << 16));
      const before = at;
      at = sweepInto(bytes, at, limit, into);
      if (at === before) break;
    }
    return at;
  },
};

/**
 * Sweeps until the table is full, the end is reached or bytes are no instruction. What an instruction is follows from its
 * header (prefixes, opcode, ModRM, SIB), by which the trie knows every one that the scanner has taken apart before.
 */
function sweepInto(bytes: Uint8Array, start: number, end: number, into: InstructionTable): number {
  const { offsets, lengths, flows, targets, effects, values, touches, transfers } = into;
  const capacity = offsets.length;
  const fastEnd = Math.min(end, bytes.length - MARGIN_BYTES);
  const { root, shapes, shapeEffects, shapeValues, shapeTouches } = trie;
  let { nodes } = trie;
  let n = into.count;
  let transferCount = into.transferCount;
  let at = start;
  while (at < end && n < capacity) {
    let entry = 0;
    if (at < fastEnd) {
      entry = root[((bytes[at] as number) << 8) | (bytes[at + 1] as number)] as number;
      for (let next = at + 2; entry < 0; next++)
        entry = nodes[((0 - entry) << 8) | (bytes[next] as number)] as number;
    }
    if (entry === 0) {
      entry = trie.learn(bytes, at, end);
      if (entry === 0) break;
      nodes = trie.nodes;
    }
    const shape = shapes[entry] as number;
    const length = shape & 15;
    if (at + length > end) break;
    const flow = (shape >> SHAPE.flow) & 15;
    const kind = (shape >> SHAPE.rawKind) & 7;
    const rawAt = at + ((shape >> SHAPE.rawAt) & 15);
    let raw = 0;
    if (kind !== RawKind.none) {
      const shift = SHIFTS[kind] as number;
      raw =
        (((bytes[rawAt] as number) |
          ((bytes[rawAt + 1] as number) << 8) |
          ((bytes[rawAt + 2] as number) << 16) |
          ((bytes[rawAt + 3] as number) << 24)) <<
          shift) >>
        shift;
    }
    const sign = SIGNS[kind] as number;
    const targetMask = TARGET_MASKS[kind] as number;
    offsets[n] = at;
    lengths[n] = length;
    flows[n] = flow;
    targets[n] = ((at + length + raw) & targetMask) | (NO_TARGET & ~targetMask);
    effects[n] = shapeEffects[entry] as number;
    values[n] = (((raw & (VALUE_MASKS[kind] as number)) ^ sign) - sign) | (shapeValues[entry] as number);
    touches[n] = shapeTouches[entry] as number;
    transfers[transferCount] = n;
    transferCount += (shape >> SHAPE.transfer) & 1;
    n++;
    at += length;
    if (flow === FlowCode.breakpoint && bytes[at - 1] === BREAKPOINT_BYTE) {
      const first = n - MAX_FILL_BYTES;
      if (first >= 0 && at - (offsets[first] as number) === MAX_FILL_BYTES && flows[first] === flow) {
        if (at < end && bytes[at] === BREAKPOINT_BYTE) into.lasts.push(n - 1);
        while (at < end && bytes[at] === BREAKPOINT_BYTE) at++;
      }
    }
  }
  into.count = n;
  into.transferCount = transferCount;
  return at;
}
