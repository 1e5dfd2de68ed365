import { describe, expect, it } from 'vitest';
import type { CodeModule } from '../../unwind/code-module.js';
import type { ModuleMap } from '../../unwind/module-map.js';
import type { UnwindRow } from '../../unwind/unwind-row.js';
import { type WalkInput, walkReliable } from '../../unwind/walk-reliable.js';
import { DeepStack, type StackCopy } from './deep-stack.js';

const RSP = 7;
const PC = 16;
const START = 0x10_0000;
const FRAME_BYTES = 32;
const [RECURSIVE, LEAF, ROOT, OTHER] = [0x401000, 0x402000, 0x403000, 0x404000];

const row: UnwindRow = {
  cfaRegister: RSP,
  cfaOffset: FRAME_BYTES,
  cfaExpression: undefined,
  savedRegisters: [3],
  savedOffsets: [-16],
  otherRules: [],
  isOutermost: false,
  returnOffset: -8,
  returnAddressRegister: PC,
  isSignalFrame: false,
};

/** A stack of so many frames of one function below a leaf, and the root of them all. */
class Stack {
  readonly memory: Buffer;
  /** Of the leaf. */
  top = START;
  /** Reads of the memory, by size. */
  readonly reads: number[] = [];
  readonly rows = new Map<number, UnwindRow>([
    [RECURSIVE, row],
    [LEAF, row],
    [OTHER, row],
    [ROOT, { ...row, isOutermost: true }],
  ]);

  constructor(readonly depth: number) {
    this.memory = Buffer.alloc((depth + 2) * FRAME_BYTES);
    for (let i = 0; i <= depth; i++) this.setReturn(i, i === depth ? ROOT : RECURSIVE);
  }

  /** Where the frame at `index` returns to. */
  setReturn(index: number, pc: number): void {
    this.memory.writeBigUInt64LE(BigInt(pc), index * FRAME_BYTES + FRAME_BYTES - 8);
    this.memory.writeBigUInt64LE(BigInt(index), index * FRAME_BYTES + FRAME_BYTES - 16);
  }

  copy(): StackCopy {
    const bytes = Buffer.from(this.memory.subarray(this.top - START));
    return { registers: Buffer.alloc(0), start: this.top, bytes };
  }

  read = (address: number, into: Uint8Array): number => {
    this.reads.push(into.length);
    return this.memory.copy(into, 0, address - START, address - START + into.length);
  };

  walk(restAt?: WalkInput['restAt'], readMemory = this.read) {
    const registers = new Float64Array(17).fill(0);
    registers[RSP] = this.top;
    registers[PC] = LEAF;
    const module = { name: 'm' } as CodeModule;
    const frameInfo = (pc: number) => {
      const found = this.rows.get(pc);
      return found === undefined
        ? { known: false, code: 'unknown-code', detail: '' }
        : { known: true, row: found, module, original: pc, isDisplaced: false };
    };
    return walkReliable({
      registers,
      readMemory,
      stackLimits: () => ({ low: START, high: START + this.memory.length }),
      modules: { frameInfo } as unknown as ModuleMap,
      ...(restAt === undefined ? {} : { restAt }),
    });
  }

  learn(): DeepStack | undefined {
    const copy = this.copy();
    const read = (address: number, into: Uint8Array) =>
      copy.bytes.copy(into, 0, address - copy.start, address - copy.start + into.length);
    return DeepStack.of(
      copy,
      (_, restAt) => this.walk(restAt, read),
      () => {},
    );
  }

  /** The walk with what was learned, how many frames were looked at one by one, and the code that is in it. */
  walkWith(deep: DeepStack | undefined) {
    if (deep === undefined) throw new Error('nothing was learned');
    const { restAt, finish } = deep.begin(this.read);
    let asked = 0;
    const result = this.walk((place) => {
      asked += 1;
      return restAt(place);
    });
    const { distinct, ...walk } = finish(result);
    return { asked, walk, code: [...new Set(distinct.map(({ pc }) => pc))].sort() };
  }
}

const DEPTH = 5000;

describe('a deep stack that was walked before', () => {
  it('is walked only to where it is as it was, with the same result', () => {
    const stack = new Stack(DEPTH);
    const { asked, walk, code } = stack.walkWith(stack.learn());
    expect(asked).toBe(16);
    expect(walk).toEqual(stack.walk());
    expect(walk.frames).toHaveLength(DEPTH + 2);
    expect(code).toEqual([RECURSIVE, LEAF, ROOT]);
  });

  it.each([40, 1000, DEPTH - 1])('that has changed at frame %d is walked anew as far as that', (index) => {
    const stack = new Stack(DEPTH);
    const deep = stack.learn();
    stack.setReturn(index, OTHER);
    const { asked, walk, code } = stack.walkWith(deep);
    expect(asked).toBeGreaterThan(index);
    expect(walk).toEqual(stack.walk());
    expect(code).toEqual([RECURSIVE, LEAF, ROOT, OTHER]);
  });

  it('that has become less deep, or deeper again, is found below', () => {
    const stack = new Stack(DEPTH);
    stack.top = START + 100 * FRAME_BYTES;
    const deep = stack.learn();
    stack.top = START + 200 * FRAME_BYTES;
    const less = stack.walkWith(deep);
    expect(less.walk).toEqual(stack.walk());
    expect(less.asked).toBe(128 - 100);
    stack.top = START;
    const more = stack.walkWith(deep);
    expect(more.walk).toEqual(stack.walk());
    expect(more.asked).toBe(100 + 16);
  });

  it('whose end has moved is walked anew, and so is one whose registers differ', () => {
    const stack = new Stack(DEPTH);
    const deep = stack.learn();
    const { restAt } = deep?.begin(stack.read) ?? {};
    const asked: unknown[] = [];
    const isRefused = (change: (place: { high: number; registers: Float64Array }) => object) =>
      stack.walk((place) => {
        asked.push(restAt?.({ ...place, ...change(place) }));
        return undefined;
      });
    isRefused(({ high }) => ({ high: high + 4096 }));
    isRefused(({ registers }) => ({
      registers: Float64Array.from(registers, (v, at) => (at === 3 ? v + 1 : v)),
    }));
    expect(asked.every((answer) => answer === undefined)).toBe(true);
  });

  it('is not relied on where a row reads below the stack pointer of its frame, or by a register that calls do not keep', () => {
    for (const bad of [{ savedOffsets: [-FRAME_BYTES - 8] }, { cfaRegister: 10, cfaOffset: 0 }]) {
      const stack = new Stack(DEPTH);
      const index = 300;
      stack.setReturn(index - 1, OTHER);
      stack.rows.set(OTHER, { ...row, ...bad });
      if ('cfaRegister' in bad) {
        // The register that holds the CFA there comes from nowhere: such a walk fails, or is of no use.
        expect(stack.learn()).toBeUndefined();
        continue;
      }
      const { asked, walk } = stack.walkWith(stack.learn());
      expect(asked).toBeGreaterThan(index);
      expect(walk).toEqual(stack.walk());
    }
  });

  it('is not learned from a walk that fails', () => {
    const stack = new Stack(DEPTH);
    stack.setReturn(DEPTH - 5, 0x12345);
    expect(stack.learn()).toBeUndefined();
  });
});
