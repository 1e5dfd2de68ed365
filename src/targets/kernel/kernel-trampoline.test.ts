import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import {
  copyBehind,
  encodeCallAndReturn,
  encodeJump,
  encodeTaskStore,
  encodeTaskTest,
  findFentryNop,
  REDIRECT_BYTES,
  WAY_BACK,
} from './kernel-trampoline.js';

const AT = -0x3fa5_0000;
const [SWITCHED, OTHER] = [AT - 0x4000, -0x7ec0_e0eb];

describe('the trampoline of a kernel function', () => {
  const options = {
    ...{ at: AT, currentTask: 0x1fbc0, stateOffset: 5212, value: 0x6c67_0001 },
    ...{ switched: SWITCHED, other: OTHER },
  };
  const code = encodeTaskTest(options);
  const decode = (bytes: Uint8Array) => {
    const found: unknown[] = [];
    for (let at = 0; at < bytes.length; ) {
      const instruction = x86_64.decoder.decode(bytes, at, AT + at);
      if (instruction === undefined) throw new Error(`no instruction at ${at}`);
      found.push([instruction.flow, instruction.target, instruction.stackOps.map((each) => each.kind)]);
      at += instruction.lengthBytes;
    }
    return found;
  };

  it('is a load of current, a comparison, and two jumps to where they should go', () => {
    expect(decode(code)).toEqual([
      ['next', undefined, []],
      ['next', undefined, []],
      ['branch', SWITCHED, []],
      ['jump', OTHER, []],
    ]);
  });

  it('keeps r11 in front of displaced instructions, and leaves room for their copy', () => {
    const keeping = encodeTaskTest({ ...options, keepsRegisters: true });
    expect(decode(keeping)).toEqual([
      ['next', undefined, ['push']],
      ['next', undefined, []],
      ['next', undefined, []],
      ['next', undefined, ['pop']],
      ['branch', SWITCHED, []],
      ['jump', OTHER, []],
    ]);
    expect(AT + keeping.length).toBeLessThanOrEqual(copyBehind(AT));
    expect(copyBehind(AT)).toBeLessThan(AT + REDIRECT_BYTES);
  });

  it('names the per-CPU variable, the field and the value', () => {
    const hex = Buffer.from(code).toString('hex');
    // As `as` writes it: mov %gs:0x1fbc0,%r11; cmpl $0x6c670001,0x145c(%r11)
    expect(hex.slice(0, 40)).toBe('654c8b1c25c0fb01004181bb5c1400000100676c');
    // From 6.15 on per-CPU variables lie at kernel addresses: mov %gs:0xffffffff82d382c8,%r11
    const late = Buffer.from(encodeTaskTest({ ...options, currentTask: -0x7d2c_7d38 })).toString('hex');
    expect(late.slice(0, 18)).toBe('654c8b1c25c882d382');
  });
});

describe('the trampoline of a barrier', () => {
  const code = encodeTaskStore({
    at: AT,
    currentTask: 0x1fbc0,
    stateOffset: 5212,
    value: 0x6c67_0001,
    next: OTHER,
  });

  it('loads current, stores the value, and goes on', () => {
    expect(code.length).toBeLessThanOrEqual(REDIRECT_BYTES);
    // As `as` writes it: mov %gs:0x1fbc0,%r11; movl $0x6c670001,0x145c(%r11)
    expect(Buffer.from(code).toString('hex').slice(0, 40)).toBe('654c8b1c25c0fb010041c7835c1400000100676c');
    expect(x86_64.decoder.decode(code, 20, AT + 20)).toMatchObject({ flow: 'jump', target: OTHER });
  });
});

describe('findFentryNop', () => {
  const nop = [0x0f, 0x1f, 0x44, 0x00, 0x00];
  it.each([
    ['at the entry', [...nop, 0x55], 0],
    ['behind endbr64', [0xf3, 0x0f, 0x1e, 0xfa, ...nop], 4],
    ['behind what a kernel writes over endbr64', [0x66, 0x0f, 0x1f, 0x00, ...nop], 4],
    ['behind what a newer one writes there', [0x0f, 0x1f, 0x40, 0xd6, ...nop], 4],
    ['in the form of older kernels', [0x66, 0x66, 0x66, 0x66, 0x90], 0],
    ['not where a tracer sits', [0xe8, 1, 2, 3, 4, 0x55], undefined],
    ['not in a function without it', [0x55, ...nop], undefined],
    ['not in too few bytes', [0x0f, 0x1f], undefined],
  ])('finds it %s', (_, bytes, expected) => {
    expect(findFentryNop(Uint8Array.from(bytes))).toBe(expected);
  });

  it('fits the jump that takes its place', () => {
    expect([...encodeJump(AT, AT + 5 + 0x100)]).toEqual([0xe9, 0, 1, 0, 0]);
    expect(nop.length).toBe(5);
  });
});

describe('code that calls a function and comes back by itself', () => {
  it('keeps what the function returned, then takes all registers from the stack', () => {
    const code = encodeCallAndReturn({ at: AT, callee: OTHER, record: SWITCHED });
    const hex = (value: number) => {
      const field = Buffer.alloc(4);
      field.writeInt32LE(value);
      return field.toString('hex');
    };
    // As `as` writes it: call, mov %eax,record+4(%rip), movl $2,record(%rip), pop rax … r15, iretq.
    expect(Buffer.from(code).toString('hex')).toBe(
      [
        ...['e8', hex(OTHER - (AT + 5))],
        ...['8905', hex(SWITCHED + 4 - (AT + 11))],
        ...['c705', hex(SWITCHED - (AT + 21)), '02000000'],
        ...['58595a5b5d5e5f', '41584159415a415b415c415d415e415f', '48cf'],
      ].join(''),
    );
    expect(code.length).toBeLessThanOrEqual(copyBehind(AT) - AT);
    expect(WAY_BACK.slice(0, 7)).toEqual(['rax', 'rcx', 'rdx', 'rbx', 'rbp', 'rsi', 'rdi']);
  });
});
