import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import { DEFAULT_LAYOUT, GuestRegisters } from './guest-registers.js';
import { explainHiddenKernel } from './hidden-kernel.js';

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
