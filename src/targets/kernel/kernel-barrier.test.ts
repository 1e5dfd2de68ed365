import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import { armBarrier, disarmBarrier, findBarrier, KERNEL_EDGE, placeBarrier } from './kernel-barrier.js';
import type { KernelRange } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';
import { REDIRECT_BYTES, TASK_STORE_BYTES } from './kernel-trampoline.js';

const BARRIER = 0x1000;
const PART = 0x2000;
const FENTRY_NOP = [0x0f, 0x1f, 0x44, 0x00, 0x00];
const RETURN = 0xc3;

/** `call target` or, with another opcode, `jmp target` at an address. */
function leadFrom(address: number, target: number, opcode = 0xe8): number[] {
  const code = new Uint8Array(5);
  code[0] = opcode;
  new DataView(code.buffer).setInt32(1, target - (address + 5), true);
  return [...code];
}

type Code = Readonly<Record<string, readonly [address: number, bytes: readonly number[]]>>;

/** A kernel of some functions. */
function kernelOf(code: Code): KernelSession {
  const find = (name: string) => {
    const found = code[name];
    return found && { name, address: found[0], sizeBytes: found[1].length };
  };
  const readMemory = async (address: number, sizeBytes: number) => {
    const bytes = Object.values(code).find(([at]) => at === address)?.[1] ?? [];
    return Uint8Array.from({ length: sizeBytes }, (_, i) => bytes[i] ?? RETURN);
  };
  return {
    kernel: {
      relocate: (address: number) => address,
      find: (name: string) => find(name)?.address,
      image: {
        symbols: {
          findAll: (name: string) => [find(name) ?? []].flat(),
          findUnique: find,
        },
      },
    },
    currentTask: { currentTask: 0x1fbc0, stateOffset: 64 },
    sliced: { readMemory },
    data: { readMemory },
  } as unknown as KernelSession;
}

describe('a declared barrier', () => {
  const session = kernelOf({
    edge: [BARRIER, FENTRY_NOP],
    'old.cold': [PART, [...leadFrom(PART, BARRIER), RETURN]],
  });
  const find = (replaced: readonly KernelRange[], isUsed = false) =>
    findBarrier(
      ...([session, x86_64, 'edge', replaced] as const),
      () => false,
      (address) => isUsed && address === BARRIER,
    );

  it('is found at its fentry nop', async () => {
    expect(await find([])).toEqual({
      name: 'edge',
      places: [{ site: BARRIER, original: FENTRY_NOP, next: BARRIER + 5 }],
    });
  });

  it('is refused when code that leaves calls it', async () => {
    await expect(find([{ name: 'old.cold', address: PART, sizeBytes: 6 }])).rejects.toMatchObject({
      code: 'bad-barrier',
      message: expect.stringContaining('old.cold, which is replaced, calls it'),
    });
  });

  it('is refused when the new code calls it: that leaves when the patch is reverted', async () => {
    await expect(find([], true)).rejects.toMatchObject({ code: 'bad-barrier' });
  });
});

describe("the kernel's edge", () => {
  const [ENTRY, RETURN_TO_USER, SYSTEM_CALL, LEAVE] = [0x1000, 0x2000, 0x8000, 0x9000];
  const toCall = leadFrom(ENTRY + 3, SYSTEM_CALL);
  // testb $3, 0x88(%rsp); je; jmp
  const test = [0xf6, 0x84, 0x24, 0x88, 0x00, 0x00, 0x00, 0x03, 0x74, 0x00];
  const toLeave = leadFrom(RETURN_TO_USER + test.length, LEAVE, 0xe9);
  const code: Code = {
    // mov %rsp, %rdi; call; test %al, %al
    entry_SYSCALL_64_after_hwframe: [ENTRY, [0x48, 0x89, 0xe7, ...toCall, 0x84, 0xc0]],
    do_syscall_64: [SYSTEM_CALL, [RETURN]],
    error_return: [RETURN_TO_USER, [...test, ...toLeave]],
    swapgs_restore_regs_and_return_to_usermode: [LEAVE, [RETURN]],
  };
  const places = [
    { site: ENTRY + 3, original: toCall, next: SYSTEM_CALL },
    { site: RETURN_TO_USER + test.length, original: toLeave, next: LEAVE },
  ];
  const find = (code: Code, replaced: readonly KernelRange[] = []) =>
    findBarrier(
      ...([kernelOf(code), x86_64, undefined, replaced] as const),
      () => false,
      () => false,
    );

  it('is where system calls begin, and where interrupts go back to user mode', async () => {
    expect(await find(code)).toEqual({ name: KERNEL_EDGE, places });
  });

  it.each([
    ['one of them is missing', { ...code, error_return: [RETURN_TO_USER, test] }],
    [
      'one of them is there twice',
      { ...code, error_return: [RETURN_TO_USER, [...test, ...toLeave, ...leadFrom(0x200f, LEAVE, 0xe9)]] },
    ],
    [
      'it leads elsewhere, as behind another tool',
      {
        ...code,
        entry_SYSCALL_64_after_hwframe: [ENTRY, [0x48, 0x89, 0xe7, ...leadFrom(ENTRY + 3, SYSTEM_CALL - 16)]],
      },
    ],
  ] satisfies readonly (readonly [string, Code])[])('is none where %s', async (_, code) => {
    expect(await find(code)).toBeUndefined();
  });

  it('is none where its own code is replaced', async () => {
    expect(await find(code, [{ name: 'entry', address: ENTRY, sizeBytes: 16 }])).toBeUndefined();
  });

  it('keeps calls calls and jumps jumps, each to code of its own, and gives all bytes back', async () => {
    const session = kernelOf(code);
    const barrier = placeBarrier({ name: KERNEL_EDGE, places }, 0x5000);
    const written: (readonly [number, Uint8Array])[] = [];
    const write = async (at: number, bytes: Uint8Array) => {
      written.push([at, bytes]);
    };
    await armBarrier(session, barrier, 7, write);
    // What is led to is there before anything leads to it.
    expect(written.map(([at]) => at)).toEqual([
      0x5000,
      0x5000 + TASK_STORE_BYTES,
      ...places.map(({ site }) => site),
    ]);
    expect(written.slice(0, 2).map(([, { length }]) => length)).toEqual([TASK_STORE_BYTES, TASK_STORE_BYTES]);
    const leads = written.map(([at, bytes]) => {
      const { flow, target } = x86_64.decoder.decode(bytes, bytes.length - 5, at + bytes.length - 5) ?? {};
      return [flow, target];
    });
    expect(leads).toEqual([
      ['jump', SYSTEM_CALL],
      ['jump', LEAVE],
      ['call', 0x5000],
      ['jump', 0x5000 + TASK_STORE_BYTES],
    ]);
    written.length = 0;
    await disarmBarrier(barrier, write);
    expect(written.map(([at, bytes]) => [at, [...bytes]])).toEqual([
      [ENTRY + 3, toCall],
      [RETURN_TO_USER + test.length, toLeave],
    ]);
  });

  it('is where 32-bit programs come in as well, as far as there is room', async () => {
    const optional = [
      ['entry_SYSCALL_compat_after_hwframe', 'do_fast_syscall_32'],
      ['entry_SYSENTER_compat_after_hwframe', 'do_SYSENTER_32'],
      ['asm_fred_entrypoint_user', 'fred_entry_from_user'],
      ['entry_INT80_compat', 'do_int80_syscall_32'],
    ] as const;
    const entries = optional.map(([from, to], i) => {
      const [at, next] = [0xa000 + 0x100 * i, 0xb000 + 0x100 * i];
      const original = leadFrom(at, next);
      const code: Code = { [from]: [at, [...original, RETURN]], [to]: [next, [RETURN]] };
      return { code, place: { site: at, original, next } };
    });
    const kernelWith = (some: typeof entries) => Object.assign({}, code, ...some.map((each) => each.code));
    const int80 = entries.filter((_, i) => i !== 2);
    expect((await find(kernelWith(int80)))?.places).toEqual([...places, ...int80.map(({ place }) => place)]);
    const most = await find(kernelWith(entries));
    expect(most?.places).toHaveLength(5);
    expect(most && placeBarrier(most, 0x5000).places.at(-1)?.trampoline).toBe(0x5000 + 4 * TASK_STORE_BYTES);
    expect(5 * TASK_STORE_BYTES).toBeLessThanOrEqual(REDIRECT_BYTES);
  });
});
