import { FlowCode, makeEffect, OpCode } from '../instruction-table.js';
import { dwarfMask, effect, findEffect } from './effect.js';
import { flowOf } from './flow.js';
import { hasRelativeTarget, isRegisterForm } from './operands.js';
import { Encoding, MAX_INSTRUCTION_BYTES, type Scan, scan, scanInstruction } from './scanner.js';
import { touchedBy, touchesFrame } from './touches.js';

/** What the 32 bits at an instruction's displacement or immediate become. */
export const RawKind = {
  none: 0,
  /** A value, sign-extended from 8 bits. */
  byte: 1,
  word: 2,
  negatedByte: 3,
  negatedWord: 4,
  /** A target, counted from the end of the instruction. */
  byteTarget: 5,
  wordTarget: 6,
  /** Of 16 bits: xbegin with 66h. */
  shortTarget: 7,
} as const;

/** Bit positions in a shape; the length has the lowest four. */
export const SHAPE = { flow: 4, rawAt: 8, rawKind: 12, transfer: 15, frame: 16 } as const;

const FLOW_CODE_OF = FlowCode as Readonly<Record<string, number>>;
/** Shapes and nodes are numbered in 16 bits with their sign. */
const MAX_COUNT = 0x7fff;
/** The shape of the instruction that was asked for last, when the trie can't keep it. */
const LAST_SHAPE = 1;
const NODE_ENTRIES = 256;

/**
 * The shapes of instructions by their header: prefixes, opcode, ModRM and SIB. All bytes of a header are looked at one after the
 * other, the first two at once; what the scanner and {@link findEffect} say of a header is kept when it is met first. All that a shape
 * leaves open is the number in a displacement or immediate.
 */
class HeaderTrie {
  /** By the first two bytes: a shape, minus a node, or 0 for what is not known yet. */
  readonly root = new Int16Array(0x10000);
  /** By node and next byte: as the root. */
  nodes = new Int16Array(NODE_ENTRIES * 1024);
  /** Length, flow, and where a raw number lies: {@link SHAPE}. */
  readonly shapes = new Int32Array(MAX_COUNT + 1);
  /** What is fixed of the value. */
  readonly shapeValues = new Int32Array(MAX_COUNT + 1);
  /** {@link InstructionTable.effects} */
  readonly shapeEffects = new Int32Array(MAX_COUNT + 1);
  /** {@link InstructionTable.touches} */
  readonly shapeTouches = new Uint32Array(MAX_COUNT + 1);
  readonly #ids = new Map<string, number>();
  #shapeCount = LAST_SHAPE + 1;
  #nodeCount = 1;

  /**
   * The shape of the instruction at `at`, 0 where there is none in `[at, end)`. May replace {@link nodes}; what it returns counts until
   * the next call.
   */
  learn(bytes: Uint8Array, at: number, end: number): number {
    if (!scanInstruction(bytes, at, end)) return 0;
    findEffect(scan);
    const { rawAt, rawKind, value } = findRaw(scan);
    const { op, a, b } = effect;
    const hasOperands =
      op !== OpCode.none && op < OpCode.leave && op !== OpCode.pushOther && op !== OpCode.popOther;
    const flow = FLOW_CODE_OF[flowOf(scan)] as number;
    const done = makeEffect(op, hasOperands ? a : 0, hasOperands ? b : 0, dwarfMask(effect.writes));
    const shape =
      scan.lengthBytes |
      (flow << SHAPE.flow) |
      (rawAt << SHAPE.rawAt) |
      (rawKind << SHAPE.rawKind) |
      (isTransfer(flow) ? 1 << SHAPE.transfer : 0) |
      (touchesFrame(touchedBy(flow, done)) ? 1 << SHAPE.frame : 0);
    const headerBytes = headerLength(scan);
    if (!isKept(scan) || this.#shapeCount > MAX_COUNT || this.#nodeCount + headerBytes > MAX_COUNT)
      return this.#set(LAST_SHAPE, shape, done, value);
    const id = this.#intern(shape, done, value);
    this.#insert(bytes, at, headerBytes, id);
    return id;
  }

  #intern(shape: number, done: number, value: number): number {
    const key = `${shape},${done},${value}`;
    let id = this.#ids.get(key);
    if (id === undefined) {
      id = this.#set(this.#shapeCount++, shape, done, value);
      this.#ids.set(key, id);
    }
    return id;
  }

  #set(id: number, shape: number, done: number, value: number): number {
    this.shapes[id] = shape;
    this.shapeValues[id] = value;
    this.shapeEffects[id] = done;
    this.shapeTouches[id] = touchedBy((shape >> SHAPE.flow) & 15, done);
    return id;
  }

  #insert(bytes: Uint8Array, at: number, headerBytes: number, id: number): void {
    const first = bytes[at] as number;
    if (headerBytes === 1) {
      this.root.fill(id, first << 8, (first + 1) << 8);
      return;
    }
    const second = bytes[at + 1] as number;
    if (headerBytes === 2) {
      this.root[(first << 8) | second] = id;
      return;
    }
    let node = this.#childOf(this.root, (first << 8) | second);
    for (let i = 2; i < headerBytes - 1; i++)
      node = this.#childOf(undefined, node * NODE_ENTRIES + (bytes[at + i] as number));
    this.nodes[node * NODE_ENTRIES + (bytes[at + headerBytes - 1] as number)] = id;
  }

  /** The node below an entry of the root, or of the nodes. */
  #childOf(root: Int16Array | undefined, index: number): number {
    const known = (root ?? this.nodes)[index] as number;
    if (known < 0) return 0 - known;
    const node = this.#nodeCount++;
    if (this.#nodeCount * NODE_ENTRIES > this.nodes.length) {
      const larger = new Int16Array(this.nodes.length * 2);
      larger.set(this.nodes);
      this.nodes = larger;
    }
    (root ?? this.nodes)[index] = 0 - node;
    return node;
  }
}

/** The one of sweeps and skims: a header that either has met is known to both. */
export const trie = new HeaderTrie();

function isTransfer(flow: number): boolean {
  return flow !== FlowCode.next && flow !== FlowCode.systemCall && flow !== FlowCode.breakpoint;
}

/** Bytes up to the displacement or immediate. */
function headerLength(of: Scan): number {
  const isMemory = of.modrm >= 0 && of.modrm < 0xc0;
  if (isMemory && of.displacementSize > 0) return of.displacementAt - of.start;
  return of.immediateSize > 0 ? of.immediateAt - of.start : of.lengthBytes;
}

/** Whether nothing but the header decides what it is: not of 3DNow!, whose opcode comes last, nor of numbers that make sizes. */
function isKept({ encoding, lengthBytes, immediateSize }: Scan): boolean {
  if (encoding === Encoding.amd3dnow || lengthBytes > MAX_INSTRUCTION_BYTES) return false;
  return !(effect.op === OpCode.enter || (effect.op === OpCode.returnPop && immediateSize > 0));
}

/** By size. */
const TARGET_KINDS = [
  RawKind.none,
  RawKind.byteTarget,
  RawKind.shortTarget,
  RawKind.none,
  RawKind.wordTarget,
];

/** Where the number of the effect's value, or of the target, comes from. */
function findRaw(of: Scan): { rawAt: number; rawKind: number; value: number } {
  const { start } = of;
  if (hasRelativeTarget(of)) {
    const rawKind = TARGET_KINDS[of.immediateSize] as number;
    return { rawAt: of.immediateAt - start, rawKind, value: effect.op === OpCode.none ? 0 : effect.value };
  }
  const isMemory = !isRegisterForm(of);
  switch (effect.op) {
    case OpCode.none:
      return { rawAt: 0, rawKind: RawKind.none, value: 0 };
    case OpCode.store:
    case OpCode.load:
      return displacementOf(of);
    case OpCode.add:
    case OpCode.and: {
      if (isMemory) return displacementOf(of);
      if (of.immediateSize === 0) return { rawAt: 0, rawKind: RawKind.none, value: effect.value };
      const isNegated = effect.op === OpCode.add && (of.modrm & 0x38) === 0x28;
      const isByte = of.immediateSize === 1;
      const rawKind = isNegated
        ? isByte
          ? RawKind.negatedByte
          : RawKind.negatedWord
        : isByte
          ? RawKind.byte
          : RawKind.word;
      return { rawAt: of.immediateAt - start, rawKind, value: 0 };
    }
    default:
      return { rawAt: 0, rawKind: RawKind.none, value: effect.value };
  }
}

function displacementOf(of: Scan): { rawAt: number; rawKind: number; value: number } {
  if (of.displacementSize === 0) return { rawAt: 0, rawKind: RawKind.none, value: 0 };
  const rawKind = of.displacementSize === 1 ? RawKind.byte : RawKind.word;
  return { rawAt: of.displacementAt - of.start, rawKind, value: 0 };
}
