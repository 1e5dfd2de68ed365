import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import type { GuestRegisters } from './guest-registers.js';
import { explainHiddenKernel } from './hidden-kernel.js';

const [USER_CS, KERNEL_CS] = [0x33n, 0x10n];
const DATA = -0x7f00_0000;

/** A stub of CPUs, each with its code segment and page table. */
function stub(cpus: readonly (readonly [cs: bigint, cr3: bigint])[], sees: boolean) {
  return {
    isRunning: false,
    interrupt: () => Promise.reject(new Error('it stands')),
    vcpus: async () => cpus.map((_, i) => `${i}`),
    readRegisters: async (vcpu: string) => {
      const [cs, cr3] = cpus[Number(vcpu)] ?? [];
      return { get: (name: string) => (name === 'cs' ? cs : cr3) } as unknown as GuestRegisters;
    },
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
    const cpus = [
      [KERNEL_CS, 0x1000_0000n],
      [USER_CS, 0x2000_1000n],
    ] as const;
    expect(await explain(cpus, false)).toMatchObject({
      code: 'kernel-hidden',
      details: { cause: 'guest-memory' },
    });
  });

  it.each([
    ['the kernel is seen', [USER_CS, 0x2000_1000n], true, error],
    ['the page table is not that of a program', [USER_CS, 0x2000_0000n], false, error],
    ['no program runs', [KERNEL_CS, 0x2000_1000n], false, error],
    ['it is about something else', [USER_CS, 0x2000_1000n], false, new LivegraftError('no-such-patch', '')],
  ] as const)('is what it was where %s', async (_, cpu, sees, what) => {
    expect(await explain([cpu], sees, what)).toBe(what);
  });
});
