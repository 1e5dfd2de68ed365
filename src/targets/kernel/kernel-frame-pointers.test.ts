import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import type { CodeModule } from '../../unwind/code-module.js';
import { ModuleMap } from '../../unwind/module-map.js';
import { walkReliable } from '../../unwind/walk-reliable.js';
import { ENCODED_FRAME, findFrameRow } from './kernel-frame-pointers.js';

const [RBP, RSP, RA] = [6, 7, 16];
const [SCHEDULE, READ, ENTRY_CODE, FORK] = [0x1000, 0x2000, 0x3000, 0x4000];
const [SYSTEM_CALL, STARTUP, END] = [0x4800, 0x5000, 0x6000];
const STACK = { low: 0x10_0000, high: 0x10_4000 };
/** `struct pt_regs`, at the top of a stack. */
const REGS = STACK.high - 168;
const [AT_IP, AT_CS, AT_FLAGS, AT_SP, AT_BP] = [128, 136, 144, 152, 32];

/** Behind a `hlt`. */
const IDLE = READ + 0x44;
const THUNK = IDLE + 0x106;
/** `nop; pop %rbp`, and a jump to the thunk of returns. */
const BEFORE_RETURN = [0x90, 0x5d, 0xe9, 0xff, 0x00, 0x00, 0x00];
/** `pop %rbp; call` */
const BEFORE_CALL = [0x5d, 0xe8, 0x00, 0x00, 0x00, 0x00];
/** Nothing but a return, by which a call at a function's entry ends, and one of ordinary functions. */
const [BACK_TO_ENTRY, RETURN] = [READ + 0x800, READ + 0x900];
const FUNCTIONS = [SCHEDULE, READ];
const codeAt = (address: number): readonly number[] => {
  if (address === BACK_TO_ENTRY || address === RETURN) return [0xc3];
  return address === IDLE ? BEFORE_RETURN : BEFORE_CALL;
};
const CODE: CodeModule = {
  ...{ name: 'kernel', start: SCHEDULE, end: END, isText: () => true },
  findRow: findFrameRow({
    isEntry: (address) => FUNCTIONS.includes(address),
    isNewTaskEntry: (address) => address === FORK,
    isSystemCall: (address) => address >= SYSTEM_CALL && address < STARTUP,
    mayReturnToNoFrame: (address) => address === BACK_TO_ENTRY,
    codeAt: (address) => Uint8Array.from(codeAt(address)),
    decoder: x86_64.decoder,
    returnThunk: THUNK,
    isStartup: (address) => address >= STARTUP,
  }),
  codeBefore: () => Uint8Array.of(0xe8, 0, 0, 0, 0),
};

interface Start {
  readonly pc: number;
  readonly bp: number;
  readonly sp: number;
  readonly isReturnAddress?: boolean;
}

function walk({ pc, bp, sp, isReturnAddress = true }: Start, words: readonly (readonly [number, number])[]) {
  const memory = new Map(words);
  const registers = new Float64Array(17).fill(Number.NaN);
  registers[RBP] = bp;
  registers[RSP] = sp;
  registers[RA] = pc;
  const result = walkReliable({
    registers,
    readMemory: (address, into) => {
      const view = new DataView(into.buffer, into.byteOffset, into.length);
      for (let at = 0; at + 8 <= into.length; at += 8)
        view.setBigInt64(at, BigInt(memory.get(address + at) ?? 0), true);
      return into.length;
    },
    stackLimits: (address) => (address >= STACK.low && address <= STACK.high ? STACK : undefined),
    modules: new ModuleMap({ modules: [CODE], decoder: x86_64.decoder }),
    startsAtReturnAddress: isReturnAddress,
    nestedStacks: {
      entryOf: (saved, frameEnd) => {
        const cs = memory.get(frameEnd - 168 + AT_CS) ?? 0;
        if ((cs & 3) === 3) return frameEnd === STACK.high ? 'user' : { damaged: 'not at the top' };
        return (saved[RA] as number) === 0 && frameEnd === STACK.high ? 'user' : 'kernel';
      },
      encodedFrame: ENCODED_FRAME,
      startsEncoded: bp % 2 === 1,
    },
  });
  return { ...result, pcs: result.frames.map((frame) => frame.pc) };
}

/** The frames of two functions above entry code, whose frame pointer leads to what lies at the top. */
const SLEEPER = { pc: SCHEDULE + 0x40, bp: STACK.low + 0x3000, sp: STACK.low + 0x2fc0 };
const FRAMES = [
  [STACK.low + 0x3000, STACK.low + 0x3080],
  [STACK.low + 0x3008, READ + 0x30],
  [STACK.low + 0x3080, REGS + 1],
  [STACK.low + 0x3088, ENTRY_CODE + 0x20],
] as const;
const USER = [
  [REGS + AT_IP, 0x7000],
  [REGS + AT_CS, 0x33],
  [REGS + AT_FLAGS, 0x202],
  [REGS + AT_SP, 0x7f00],
] as const;

describe('a stack with frame pointers', () => {
  it('is walked through every frame to the registers of user mode, which an odd frame pointer leads to', () => {
    const { reliable, pcs } = walk(SLEEPER, [...FRAMES, ...USER]);
    expect(reliable).toBe(true);
    expect(pcs).toEqual([SCHEDULE + 0x40, READ + 0x30, ENTRY_CODE + 0x20]);
  });

  it('is walked to the registers of user mode where a system call came in, which clears the frame pointer', () => {
    const top = REGS - 16;
    const words = [
      [STACK.low + 0x3000, top],
      [STACK.low + 0x3008, READ + 0x30],
      [top, 0],
      [top + 8, SYSTEM_CALL + 0x20],
    ] as const;
    const { reliable, pcs } = walk(SLEEPER, [...words, ...USER]);
    expect([reliable, pcs.at(-1)]).toEqual([true, SYSTEM_CALL + 0x20]);
  });

  it('knows an odd frame pointer where addresses have 57 bits, of which a number loses the lowest', () => {
    const base = -0x00c5_2d1b_0000_0000;
    expect(base + 1).toBe(base);
    const [sp, bp, regs] = [base + 0x3000, base + 0x3080, base + 0x4000 - 168];
    const words = new Map<number, bigint>([
      [bp, BigInt(regs) + 1n],
      [bp + 8, BigInt(ENTRY_CODE + 0x20)],
    ]);
    const registers = new Float64Array(17).fill(Number.NaN);
    [registers[RBP], registers[RSP], registers[RA]] = [bp, sp, SCHEDULE + 0x40];
    const result = walkReliable({
      registers,
      readMemory: (address, into) => {
        const view = new DataView(into.buffer, into.byteOffset, into.length);
        for (let at = 0; at + 8 <= into.length; at += 8)
          view.setBigInt64(at, words.get(address + at) ?? 0n, true);
        return into.length;
      },
      stackLimits: () => ({ low: base, high: base + 0x4000 }),
      modules: new ModuleMap({ modules: [CODE], decoder: x86_64.decoder }),
      startsAtReturnAddress: true,
      nestedStacks: {
        entryOf: (_, frameEnd) => (frameEnd === base + 0x4000 ? 'user' : { damaged: 'elsewhere' }),
        encodedFrame: ENCODED_FRAME,
      },
    });
    expect(result).toMatchObject({ reliable: true });
  });

  it('ends at the first registers of a kernel thread, also of one that has never run', () => {
    const fresh = { pc: FORK, bp: REGS + 1, sp: REGS, isReturnAddress: false };
    expect(walk(fresh, [])).toMatchObject({ reliable: true, pcs: [FORK] });
    const frames = FRAMES.map(([at, word]) => [at, word === ENTRY_CODE + 0x20 ? FORK + 9 : word] as const);
    expect(walk(SLEEPER, frames)).toMatchObject({ reliable: true });
    expect(walk(SLEEPER, frames).pcs.at(-1)).toBe(FORK + 9);
  });

  it("ends where a CPU began, whose first function's caller is no function", () => {
    const frames = FRAMES.map(([at, word]) => [at, word === REGS + 1 ? 0 : word] as const);
    const started = frames.map(
      ([at, word]) => [at, word === ENTRY_CODE + 0x20 ? STARTUP + 9 : word] as const,
    );
    expect(walk(SLEEPER, started)).toMatchObject({ reliable: true });
  });

  it('is refused where code was interrupted that may not have set up its frame, and taken at its first instruction', () => {
    const interrupted = { ...SLEEPER, isReturnAddress: false };
    expect(walk(interrupted, [...FRAMES, ...USER])).toMatchObject({
      reliable: false,
      reason: { code: 'no-unwind-row' },
    });
    // It has been called, and has pushed nothing: the frame pointer is its caller's.
    const entered = { pc: SCHEDULE, bp: STACK.low + 0x3080, sp: STACK.low + 0x3010, isReturnAddress: false };
    const words = [[STACK.low + 0x3010, READ + 0x30] as const, ...FRAMES.slice(2), ...USER];
    expect(walk(entered, words)).toMatchObject({
      reliable: true,
      pcs: [SCHEDULE, READ + 0x30, ENTRY_CODE + 0x20],
    });
  });

  it('is taken where code runs straight to its return, which tells where its address lies', () => {
    const idle = { pc: IDLE, bp: 0x7777, sp: STACK.low + 0x3000, isReturnAddress: false };
    const words = [[STACK.low + 0x3000, STACK.low + 0x3080] as const, ...FRAMES.slice(1), ...USER];
    expect(walk(idle, words)).toMatchObject({ reliable: true, pcs: [IDLE, READ + 0x30, ENTRY_CODE + 0x20] });
  });

  it('is refused at a return that may lead to code without a frame, whose caller would be left out', () => {
    const at = (pc: number) => ({
      pc,
      bp: STACK.low + 0x3000,
      sp: STACK.low + 0x2fc0,
      isReturnAddress: false,
    });
    const caller = READ + 0x77;
    const entry = [
      [STACK.low + 0x2fc0, SCHEDULE + 5],
      [STACK.low + 0x2fc8, caller],
    ] as const;
    const refused = walk(at(BACK_TO_ENTRY), [...entry, ...FRAMES, ...USER]);
    expect(refused).toMatchObject({ reliable: false, reason: { code: 'no-unwind-row' } });
    const returns = [[STACK.low + 0x2fc0, caller] as const, ...FRAMES, ...USER];
    expect(walk(at(RETURN), returns)).toMatchObject({
      reliable: true,
      pcs: [RETURN, caller, READ + 0x30, ENTRY_CODE + 0x20],
    });
  });

  it('is refused where an exception has interrupted the kernel itself', () => {
    const inner = STACK.low + 0x3100;
    const frames = FRAMES.map(([at, word]) => [at, word === REGS + 1 ? inner + 1 : word] as const);
    const exception = [
      [inner + AT_IP, READ + 0x11],
      [inner + AT_CS, 0x10],
      [inner + AT_SP, inner + 0x200],
      [inner + AT_BP, inner + 0x240],
    ] as const;
    expect(walk(SLEEPER, [...frames, ...exception])).toMatchObject({
      reliable: false,
      reason: { code: 'no-unwind-row' },
    });
  });

  it('is refused where a frame pointer does not rise, leads out of the stack, or to damaged registers', () => {
    const with1 = (word: number) => [
      ...FRAMES.map(([at, each]) => [at, at === STACK.low + 0x3000 ? word : each] as const),
      ...USER,
    ];
    for (const word of [STACK.low + 0x2f00, STACK.high + 0x80, 0, STACK.low + 0x3084])
      expect([word, walk(SLEEPER, with1(word)).reliable]).toEqual([word, false]);
    const elsewhere = FRAMES.map(([at, word]) => [at, word === REGS + 1 ? REGS - 63 : word] as const);
    const moved = USER.map(([at, word]) => [at - 64, word] as const);
    expect(walk(SLEEPER, [...elsewhere, ...moved])).toMatchObject({
      reliable: false,
      reason: { code: 'exception-frame-damaged' },
    });
  });
});
