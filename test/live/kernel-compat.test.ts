import { describe, expect, it } from 'vitest';
import { COMPAT_WAYS, CompatPrograms, compatProgram } from '../kernels/compat-programs.js';
import { KernelLab } from '../support/kernel-lab.js';

/** The vDSO of 32-bit programs uses SYSCALL on a processor of AMD's, which the emulator's is, and SYSENTER on one of Intel's. */
describe.each([
  ['SYSCALL', 'max', /entry_SYSCALL_compat: /],
  ['SYSENTER', 'max,vendor=GenuineIntel', /entry_SYSENTER_compat: /],
])('a 32-bit program on a processor with %s', (_, cpu, entry) => {
  const lab = new KernelLab({ cpu, append: 'nopti', files: () => [compatProgram()] });

  it.each(COMPAT_WAYS)('sleeps, computes and forks under a patch without a mix: %s', async (way) => {
    const path = lab.patchOf('loadavg.c');
    const { guest, image, vmlinux } = lab;
    const programs = new CompatPrograms({ guest, image, vmlinux, patch: { path, name: 'loadavg' } });
    const text = await programs.try(way);
    expect(text).toMatch(way === 'int80' ? /INT80_compat: |asm_int80_emulation: / : entry);
    await lab.expectQuiet();
  });
});
