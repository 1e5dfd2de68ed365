import { expect, it } from 'vitest';
import { R_X86_64_PLT32 } from '../../elf/constants.js';
import type { Patch, PatchSection } from '../../patch/content.js';
import type { PatchLayout } from '../../patch/layout.js';
import { usePlainReturns } from './kernel-link.js';

it('makes jumps to the return thunk plain returns, and leaves other jumps and calls alone', () => {
  const external = { kind: 'external' as const, object: 'vmlinux', sympos: 0, isThreadLocal: false };
  const symbols = ['schedule', '__x86_return_thunk'].map((name) => ({ ...external, name, isWeak: false }));
  const relocation = (offset: number, symbolIndex: number) => ({
    ...{ offset, symbolIndex, type: R_X86_64_PLT32, addend: -4 },
  });
  const section = { relocations: [relocation(1, 1), relocation(6, 0), relocation(11, 1)] };
  const bytes = Uint8Array.of(0x90, 0xe9, 1, 2, 3, 4, 0xe9, 5, 6, 7, 8, 0xe8, 9, 9, 9, 9);
  const patch = { symbols, sections: [section as unknown as PatchSection] } as unknown as Patch;
  const layout = { sectionOffsets: [1] } as unknown as PatchLayout;
  usePlainReturns({ bytes, base: 0, functions: [] }, patch, layout);
  expect([...bytes]).toEqual([0x90, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xe9, 5, 6, 7, 8, 0xe8, 9, 9, 9, 9]);
});
