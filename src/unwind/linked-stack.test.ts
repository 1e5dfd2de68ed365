import { describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import type { CfiRow } from '../cfi/row.js';
import type { CodeModule } from './code-module.js';
import { ModuleMap } from './module-map.js';
import { prepareRow } from './unwind-row.js';
import { walkReliable } from './walk-reliable.js';

const [RBP, RSP, RA] = [6, 7, 16];
const [HANDLER, SWITCH, BOTTOM, END] = [0x1000, 0x2000, 0x3000, 0x4000];
const TASK = { low: 0x10_0000, high: 0x10_1000 };
const IRQ = { low: 0x20_0000, high: 0x20_1000 };
/** Where the function that switches stacks has pushed the frame pointer, on the task's stack. */
const LINK = 0x10_0f00;

function row(cfa: CfiRow['cfa'], isOutermost = false): CfiRow {
  const registers: CfiRow['registers'] = new Map([
    [RA, isOutermost ? { kind: 'undefined' } : { kind: 'offset', offset: -8 }],
  ]);
  return {
    start: 0,
    end: END,
    cfa,
    registers,
    returnAddressRegister: RA,
    signalFrame: false,
    argsSizeBytes: 0,
  };
}

const ROWS = [
  { from: BOTTOM, row: prepareRow(row({ kind: 'register', register: RSP, offset: 0 }, true)) },
  { from: SWITCH, row: prepareRow(row({ kind: 'register', register: RBP, offset: 16 })) },
  { from: HANDLER, row: prepareRow(row({ kind: 'register', register: RSP, offset: 24 })) },
];
const CODE: CodeModule = {
  ...{ name: 'kernel', start: HANDLER, end: END, isText: () => true },
  findRow: (address) => ROWS.find(({ from }) => address >= from)?.row,
  codeBefore: () => Uint8Array.of(0xe8, 0, 0, 0, 0),
};

/** A handler called on the interrupt stack by a function that keeps the task's stack in its frame pointer. */
function walk(topWord: number, mayEndAt?: (at: number) => boolean) {
  const words = new Map([
    [IRQ.high - 16, SWITCH + 0x10],
    [IRQ.high - 8, topWord],
    [LINK + 8, BOTTOM + 0x10],
  ]);
  const registers = new Float64Array(17).fill(Number.NaN);
  registers[RBP] = LINK;
  registers[RSP] = IRQ.high - 32;
  registers[RA] = HANDLER + 8;
  return walkReliable({
    registers,
    readMemory: (address, into) => {
      const view = new DataView(into.buffer, into.byteOffset, into.length);
      for (let at = 0; at + 8 <= into.length; at += 8)
        view.setBigInt64(at, BigInt(words.get(address + at) ?? 0), true);
      return into.length;
    },
    stackLimits: (address) => [TASK, IRQ].find(({ low, high }) => address >= low && address <= high),
    modules: new ModuleMap({ modules: [CODE], decoder: x86_64.decoder }),
    nestedStacks: { entryOf: () => 'kernel', ...(mayEndAt && { mayEndAt }) },
  });
}

describe('a call on another stack by frame pointer', () => {
  it('is followed where the word at the top of the stack leads to the same place', () => {
    const result = walk(LINK);
    expect(result.reliable).toBe(true);
    expect(result.frames.map(({ pc }) => pc)).toEqual([HANDLER + 8, SWITCH + 0x10, BOTTOM + 0x10]);
  });

  it('is refused where the tables end it too early', () => {
    const behind = LINK + 16;
    expect(walk(LINK, (at) => at === behind).reliable).toBe(true);
    expect(walk(LINK, (at) => at !== behind)).toMatchObject({
      reliable: false,
      reason: { code: 'ends-too-early' },
      pc: BOTTOM + 0x10,
    });
  });

  it('is refused where it does not', () => {
    for (const other of [0, LINK + 8])
      expect(walk(other)).toMatchObject({ reliable: false, reason: { code: 'cfa-not-rising' } });
  });
});

describe('a return that may be a jump', () => {
  /** Its code, interrupted, with a function's first instruction on top of the stack, which no call leads to, and the caller's place above. */
  function walkFrom(isReturn: boolean) {
    const rows = [
      { from: BOTTOM, row: prepareRow(row({ kind: 'register', register: RSP, offset: 0 }, true)) },
      { from: SWITCH, row: prepareRow(row({ kind: 'register', register: RSP, offset: 8 })) },
      {
        from: HANDLER,
        row: { ...prepareRow(row({ kind: 'register', register: RSP, offset: 8 })), isReturn },
      },
    ];
    const code: CodeModule = {
      ...CODE,
      findRow: (address) => rows.find(({ from }) => address >= from)?.row,
      codeBefore: (address) => (address === SWITCH ? Uint8Array.of(0x90) : CODE.codeBefore(address, 5)),
    };
    const words = [SWITCH, BOTTOM + 0x10];
    const registers = new Float64Array(17).fill(Number.NaN);
    registers[RSP] = TASK.high - 16;
    registers[RA] = HANDLER;
    return walkReliable({
      registers,
      readMemory: (address, into) => {
        const view = new DataView(into.buffer, into.byteOffset, into.length);
        for (let at = 0; at + 8 <= into.length; at += 8)
          view.setBigInt64(at, BigInt(words[(address + at - (TASK.high - 16)) / 8] ?? 0), true);
        return into.length;
      },
      stackLimits: () => TASK,
      modules: new ModuleMap({ modules: [code], decoder: x86_64.decoder }),
    });
  }

  it('is walked as if it had been made', () => {
    const { reliable, frames } = walkFrom(true);
    expect(reliable).toBe(true);
    expect(frames.map(({ pc, by }) => [pc, by])).toEqual([
      [HANDLER, 'stopped'],
      [SWITCH, 'stopped'],
      [BOTTOM + 0x10, 'call'],
    ]);
  });

  it('is none of a caller otherwise', () => {
    expect(walkFrom(false)).toMatchObject({ reliable: false, reason: { code: 'not-a-return-address' } });
  });
});
