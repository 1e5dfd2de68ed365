import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import { isSameCode, planDisplacement } from './kernel-displacement.js';

const TEXT = -0x7f00_0000;
const DATA = -0x7e00_0000;
const [FUNCTION, SIZE] = [TEXT + 0x100, 0x20];

const [CALLER, FENTRY] = [TEXT + 0x700, TEXT + 0xf00];

interface Parts {
  /** What everything else in the text is called, and is part of. */
  readonly caller?: string;
  readonly entry?: readonly number[];
  /** Elsewhere in the text, by offset. */
  readonly code?: readonly (readonly [offset: number, bytes: readonly number[]])[];
  readonly symbols?: Readonly<Record<string, number>>;
  readonly sections?: Readonly<Record<string, Uint8Array>>;
  /** What lies at DATA. */
  readonly data?: Uint8Array;
  readonly prototype?: { readonly parameters: readonly unknown[]; readonly returnTypeId: number };
}

/** push %rbp; mov %rsp, %rbp; push %rbx; mov %rdi, %rbx; ret, as compilers begin a function. */
const USUAL = [0x55, 0x48, 0x89, 0xe5, 0x53, 0x48, 0x89, 0xfb, 0xc3];

function plan(parts: Parts = {}) {
  const text = new Uint8Array(0x1000).fill(0x90);
  text.fill(0xcc, FUNCTION - TEXT, FUNCTION - TEXT + SIZE);
  text.set(parts.entry ?? USUAL, FUNCTION - TEXT);
  for (const [offset, bytes] of parts.code ?? []) text.set(bytes, offset);
  const prototype = parts.prototype ?? { parameters: [{}], returnTypeId: 0 };
  const image = {
    text: { address: TEXT, bytes: text },
    symbols: {
      findUnique: (name: string) => {
        const address = name === '__fentry__' ? FENTRY : name === 'caller' ? CALLER : parts.symbols?.[name];
        return address === undefined ? undefined : { address };
      },
      findCovering: () => ({ name: parts.caller ?? 'other', address: CALLER }),
    },
    elf: {
      findSection: (name: string) => {
        const data = parts.sections?.[name];
        return data && { name, address: DATA, data };
      },
      bytesAt: () => parts.data,
    },
    btf: {
      findType: () => 1,
      type: (id: number) => (id === 1 ? { kind: 'func', typeId: 2 } : { kind: 'funcProto', ...prototype }),
    },
  } as unknown as KernelImage;
  return planDisplacement(image, x86_64, { name: 'f', address: FUNCTION, sizeBytes: SIZE });
}

/** A word at DATA + `at` that leads to an address. */
function relative(at: number, to: number): Uint8Array {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setInt32(at, to - (DATA + at), true);
  return bytes;
}

function pointer(to: number): Uint8Array {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setBigInt64(8, BigInt(to), true);
  return bytes;
}

const jump = (from: number, to: number) => {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setInt32(0, to - (from + 5), true);
  return [0xe9, ...bytes];
};

describe('planDisplacement', () => {
  it('covers whole instructions', () => {
    expect(plan().site).toMatchObject({ offset: 0, jumpSizeBytes: 5, displacedSizeBytes: 5 });
    expect(plan({ entry: [0xf3, 0x0f, 0x1e, 0xfa, ...USUAL] }).site).toMatchObject({ offset: 4 });
  });

  it('lets others jump to the entry itself and behind what is displaced', () => {
    const traced = [CALLER - TEXT, jump(CALLER, FENTRY).with(0, 0xe8)] as const;
    expect(plan({ code: [traced, [0x800, jump(TEXT + 0x800, FUNCTION)]] }).site).toBeDefined();
    expect(plan({ code: [[0x800, jump(TEXT + 0x800, FUNCTION + 5)]] }).site).toBeDefined();
    expect(plan({ sections: { '.rodata': pointer(FUNCTION) } }).site).toBeDefined();
  });

  const call = (from: number, to: number) => [from - TEXT, jump(from, to).with(0, 0xe8)] as const;
  it('lets only code call it that was compiled for ftrace, which knows nothing of the registers that it keeps', () => {
    const traced = call(CALLER, FENTRY);
    const calls = call(TEXT + 0x710, FUNCTION);
    expect(plan({ code: [traced, calls] }).site).toBeDefined();
    expect(plan({ code: [traced, calls], caller: 'caller.cold' }).site).toBeDefined();
    expect(plan({ code: [calls] }).refused).toMatch(/other, which was compiled without it, too, calls it/);
    expect(plan({ code: [traced, calls], caller: 'gone.cold' }).refused).toMatch(/gone.cold, which was/);
  });

  const bounds = (name: string) => ({ [`__${name}_text_start`]: TEXT, [`__${name}_text_end`]: TEXT + 0x200 });
  const around = (name: string) => ({ [`__start_${name}`]: DATA, [`__stop_${name}`]: DATA + 16 });
  it.each<[string, Parts, RegExp]>([
    ['text without probes', { symbols: bounds('noinstr') }, /noinstr text/],
    ['the code of entries', { symbols: bounds('entry') }, /entry text/],
    ['what must not be probed', { symbols: around('kprobe_blacklist'), data: pointer(FUNCTION) }, /NOKPROBE/],
    ['assembly', { prototype: { parameters: [], returnTypeId: 0 } }, /C function/],
    ['a short function', { entry: [0x31, 0xc0, 0xc3] }, /bytes/],
    ['a call at once', { entry: [0x55, ...jump(0, 0x40).with(0, 0xe8), 0xc3] }, /calls another function/],
    ['a loop into the entry', { entry: [0x55, 0x48, 0x89, 0xe5, 0x53, 0xeb, 0xfa] }, /inside its first/],
    ['a far jump into it', { code: [[0x800, jump(TEXT + 0x800, FUNCTION + 1)]] }, /other seems to lead/],
    ['a short jump into it', { code: [[0xf0, [0xeb, 0x0f]]] }, /other seems to lead/],
    [
      'a label that code loads',
      { code: [[0x800, [0x48, 0x8d, 0x05, ...jump(TEXT + 0x802, FUNCTION + 1).slice(1)]]] },
      /other seems to lead/,
    ],
    ['a jump label', { symbols: around('__jump_table'), data: relative(4, FUNCTION + 4) }, /jump_table/],
    ['a static call', { symbols: around('static_call_sites'), data: relative(0, FUNCTION) }, /static_call/],
    ['a place that may fault', { sections: { __ex_table: relative(8, FUNCTION + 1) } }, /__ex_table/],
    ['alternatives', { sections: { '.altinstructions': relative(3, FUNCTION) } }, /\.altinstructions/],
    ['a label that is kept', { sections: { '.rodata': pointer(FUNCTION + 1) } }, /\.rodata/],
  ])('refuses %s', (_, parts, reason) => {
    expect(plan(parts).refused).toMatch(reason);
  });
});

describe('isSameCode', () => {
  // mov $0x81000000, %edi; push %rbp
  const image = Uint8Array.of(0xbf, 0x00, 0x00, 0x00, 0x81, 0x55);
  it('knows what address-space randomisation changes', () => {
    const moved = Uint8Array.of(0xbf, 0x00, 0x00, 0x20, 0x8b, 0x55);
    expect(isSameCode(x86_64, image, image, 0)).toBe(true);
    expect(isSameCode(x86_64, moved, image, 0x0a20_0000)).toBe(true);
    expect(isSameCode(x86_64, moved, image, 0x0a40_0000)).toBe(false);
  });

  it('knows a probe', () => {
    expect(isSameCode(x86_64, image.with(0, 0xcc), image, 0)).toBe(false);
    expect(isSameCode(x86_64, image.with(5, 0xcc), image, 0)).toBe(false);
  });
});
