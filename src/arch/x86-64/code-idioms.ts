import type { CodeIdioms } from '../architecture.js';
import {
  R_X86_64_32,
  R_X86_64_32S,
  R_X86_64_64,
  R_X86_64_PC32,
  R_X86_64_PC64,
  R_X86_64_PLT32,
} from './relocation-types.js';

/** What compilers and the kernel hide in names (arch/x86/lib/retpoline.S) and relocations (psABI table 4.9). */
export const codeIdioms: CodeIdioms = {
  thunkKind(name) {
    if (!name.startsWith('__x86_')) return undefined;
    if (name === '__x86_return_thunk') return 'return';
    return name.startsWith('__x86_indirect_') ? 'indirect' : undefined;
  },

  relocationKind(type) {
    switch (type) {
      case R_X86_64_64:
        return { sizeBytes: 8, isRelative: false };
      case R_X86_64_32:
      case R_X86_64_32S:
        return { sizeBytes: 4, isRelative: false };
      case R_X86_64_PC32:
      case R_X86_64_PLT32:
        return { sizeBytes: 4, isRelative: true };
      case R_X86_64_PC64:
        return { sizeBytes: 8, isRelative: true };
      default:
        return undefined;
    }
  },

  registerName(register) {
    return REGISTER_NAMES[register] ?? `r${register}?`;
  },
};

const REGISTER_NAMES = [
  'rax',
  'rdx',
  'rcx',
  'rbx',
  'rsi',
  'rdi',
  'rbp',
  'rsp',
  ...Array.from({ length: 8 }, (_, i) => `r${i + 8}`),
  'ra',
];
