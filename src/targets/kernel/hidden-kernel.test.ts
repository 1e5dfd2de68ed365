import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import type { KernelImage } from '../../kernel-image/kernel-image.js';
import { DEFAULT_LAYOUT, GuestRegisters } from './guest-registers.js';
import { explainHiddenKernel, offsetByGates } from './hidden-kernel.js';

const DATA = -0x7f00_0000;

/** A stub of CPUs, of each of which the registers say that it may hide the kernel, or not. */
function stub(cpus: readonly boolean[], sees: boolean) {
  return {
    isRunning: false,
    interrupt: () => Promise.reject(new Error('it stands')),
    vcpus: async () => cpus.map((_, i) => `${i}`),
    readRegisters: async (vcpu: string) => ({ mayHideKernel: cpus[Number(vcpu)] }) as GuestRegisters,
    readMemory: async () => {
      if (!sees) throw new LivegraftError('guest-memory', 'not mapped');
      return new Uint8Array(1);
    },
  };
}

describe('an error of a guest', () => {
  const error = new LivegraftError('guest-memory', "4 bytes can't be read");
  const explain = (cpus: Parameters<typeof stub>[0], sees: boolean, what: unknown = error) =>
    explainHiddenKernel(stub(cpus, sees), DATA, what);

  it('is explained by a program that runs on a page table without the kernel', async () => {
    expect(await explain([false, true], false)).toMatchObject({
      code: 'kernel-hidden',
      details: { cause: 'guest-memory' },
    });
  });

  it.each([
    ['the kernel is seen', true, true, error],
    ['no program runs', false, false, error],
    ['it is about something else', true, false, new LivegraftError('no-such-patch', '')],
  ] as const)('is what it was where %s', async (_, cpu, sees, what) => {
    expect(await explain([cpu], sees, what)).toBe(what);
  });
});

describe('the gates of exceptions', () => {
  const KASLR = 0x1260_0000;
  const HANDLERS: Readonly<Record<string, number>> = {
    ...{ asm_exc_divide_error: -0x7e5f_f500, asm_exc_invalid_op: -0x7e5f_f3c0 },
    ...{ asm_exc_general_protection: -0x7e5f_f240, asm_exc_page_fault: -0x7e5f_f1f0 },
  };
  const VECTORS = [0, 6, 13, 14];
  const image = {
    symbols: { findUnique: (name: string) => ({ address: HANDLERS[name] }) },
  } as unknown as KernelImage;
  const tableOf = (offsets: readonly number[]) => {
    const view = new DataView(new ArrayBuffer(15 * 16));
    Object.values(HANDLERS).forEach((address, i) => {
      const handler = BigInt.asUintN(64, BigInt(address + (offsets[i] as number)));
      const gate = (VECTORS[i] as number) * 16;
      view.setUint16(gate, Number(handler & 0xffffn), true);
      view.setUint16(gate + 6, Number((handler >> 16n) & 0xffffn), true);
      view.setUint32(gate + 8, Number(handler >> 32n), true);
    });
    return new Uint8Array(view.buffer);
  };
  const offsetOf = (read: () => Promise<Uint8Array>) => offsetByGates({ readMemory: read }, image);

  it('tell where the kernel lies', async () => {
    expect(await offsetOf(async () => tableOf([KASLR, KASLR, KASLR, KASLR]))).toBe(KASLR);
    expect(await offsetOf(async () => tableOf([0, 0, 0, 0]))).toBe(0);
  });

  it("tell nothing when they are another kernel's, or can't be read", async () => {
    expect(await offsetOf(async () => tableOf([KASLR, KASLR, KASLR, KASLR + 0x40]))).toBeUndefined();
    const unmapped = () => Promise.reject(new LivegraftError('guest-memory', 'not mapped'));
    expect(await offsetOf(unmapped)).toBeUndefined();
    const gone = () => Promise.reject(new LivegraftError('target-gone', 'gone'));
    await expect(offsetOf(gone)).rejects.toMatchObject({ code: 'target-gone' });
  });
});

describe('registers', () => {
  it.each([
    [0x33, 0x2000_1000, true],
    [0x33, 0x2000_0000, false],
    [0x10, 0x2000_1000, false],
  ])('with cs %i and cr3 %i may hide the kernel: %s', (cs, cr3, expected) => {
    const places = new Map([
      ['cs', { offset: 0, sizeBytes: 4 }],
      ['cr3', { offset: 8, sizeBytes: 8 }],
    ]);
    const registers = new GuestRegisters(new Uint8Array(16), { ...DEFAULT_LAYOUT, places });
    expect(registers.with({ cs, cr3 }).mayHideKernel).toBe(expected);
  });
});
