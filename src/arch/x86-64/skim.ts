import { FlowCode } from '../instruction-table.js';
import type { InstructionSkimmer, SkimTable } from '../skim-table.js';
import { RawKind, SHAPE, trie } from './header-trie.js';
import { MAX_INSTRUCTION_BYTES } from './scanner.js';
import { MODRM_LOOKS, MODRM_SIZES, SKIM_CELLS } from './skim.data.js';
import { ESCAPED, MODRM_SHIFT, NO_BASE, SIZE_MASK } from './skim-cells.js';

/** What is read beyond the first byte of an instruction, whatever it is. */
const MARGIN_BYTES = MAX_INSTRUCTION_BYTES + 8;
const BYTES_PER_LOOK = 8;

export const skimmer: InstructionSkimmer = {
  skim(bytes, start, end, into) {
    const limit = Math.min(end, bytes.length);
    let at = start;
    while (at < limit) {
      into.reserve(into.count + Math.ceil((limit - at) / BYTES_PER_LOOK) + 64);
      const before = at;
      at = skimInto(bytes, at, limit, into);
      if (at === before) break;
    }
    return at;
  },
};

/**
 * Skims until the table is full, the end is reached or bytes are no instruction. Most instructions do nothing to a frame: by opcode and ModRM byte
 * alone a small table tells that, and how long they are; the rest is looked up by its header.
 */
function skimInto(bytes: Uint8Array, start: number, end: number, into: SkimTable): number {
  const { positions, flows, effects, values, starts, transfers } = into;
  const capacity = positions.length;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const fastEnd = Math.min(end, bytes.length - MARGIN_BYTES);
  const { root, shapes, shapeEffects, shapeValues } = trie;
  let { nodes } = trie;
  let n = into.count;
  let transferCount = into.transferCount;
  let at = start;
  while (at < end && n < capacity) {
    const isFast = at < fastEnd;
    if (isFast) {
      let word = view.getUint32(at, true);
      // 1 with a REX prefix, without a branch: every second instruction has one.
      const rex = (((word & 0xf0) ^ 0x40) - 1) >>> 31;
      const wide = (rex << 8) & (word << 5);
      word >>>= rex << 3;
      let cell: number;
      let after = at + rex;
      if ((word & 0xff) === 0x0f) {
        word = view.getUint32(++after, true);
        cell = SKIM_CELLS[ESCAPED | wide | (word & 0xff)] as number;
      } else cell = SKIM_CELLS[wide | (word & 0xff)] as number;
      const modrm = (word >>> 8) & 0xff;
      if ((cell & (MODRM_LOOKS[modrm] as number)) === 0) {
        starts[at >>> 5] = (starts[at >>> 5] as number) | (1 << (at & 31));
        const isBare = ((((word >>> 16) & 7) ^ 5) - 1) >>> 31;
        const rest = (MODRM_SIZES[modrm | (isBare * NO_BASE)] as number) & (0 - ((cell >> MODRM_SHIFT) & 1));
        at = after + (cell & SIZE_MASK) + rest;
        continue;
      }
    }
    let entry = 0;
    if (isFast) {
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
    starts[at >>> 5] = (starts[at >>> 5] as number) | (1 << (at & 31));
    if ((shape & (1 << SHAPE.frame)) !== 0) {
      const flow = (shape >> SHAPE.flow) & 15;
      positions[n] = at;
      flows[n] = flow | (length << 4);
      effects[n] = shapeEffects[entry] as number;
      values[n] = numberOf(bytes, at, shape, shapeValues[entry] as number);
      transfers[transferCount] = n;
      transferCount += flow === FlowCode.next ? 0 : 1;
      n++;
    }
    at += length;
  }
  into.count = n;
  into.transferCount = transferCount;
  return at;
}

/** The effect's value, or the position that a direct jump, branch or call leads to. */
function numberOf(bytes: Uint8Array, at: number, shape: number, fixed: number): number {
  const kind = (shape >> SHAPE.rawKind) & 7;
  if (kind === RawKind.none) return fixed;
  const rawAt = at + ((shape >> SHAPE.rawAt) & 15);
  const byte = ((bytes[rawAt] as number) << 24) >> 24;
  if (kind === RawKind.byte) return byte;
  const end = at + (shape & 15);
  if (kind === RawKind.byteTarget) return end + byte;
  if (kind === RawKind.negatedByte) return 0 - byte;
  const word =
    (bytes[rawAt] as number) |
    ((bytes[rawAt + 1] as number) << 8) |
    ((bytes[rawAt + 2] as number) << 16) |
    ((bytes[rawAt + 3] as number) << 24);
  if (kind === RawKind.wordTarget) return end + word;
  if (kind === RawKind.word) return word;
  return kind === RawKind.negatedWord ? 0 - word : end + ((word << 16) >> 16);
}
