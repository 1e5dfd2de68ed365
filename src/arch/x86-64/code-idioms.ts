import type { CodeIdioms } from '../architecture.js';
import {
  R_X86_64_32,
  R_X86_64_32S,
  R_X86_64_64,
  R_X86_64_GOT64,
  R_X86_64_GOTOFF64,
  R_X86_64_GOTPCREL,
  R_X86_64_GOTPCRELX,
  R_X86_64_PC32,
  R_X86_64_PC64,
  R_X86_64_PLT32,
  R_X86_64_PLTOFF64,
} from './relocation-types.js';

const ABSOLUTE_4 = { sizeBytes: 4, isRelative: false } as const;
const ABSOLUTE_8 = { sizeBytes: 8, isRelative: false } as const;
const RELATIVE_4 = { sizeBytes: 4, isRelative: true } as const;
const RELATIVE_8 = { sizeBytes: 8, isRelative: true } as const;

/** What compilers and the kernel hide in names (arch/x86/lib/retpoline.S) and relocations (psABI table 4.9). */
export const codeIdioms: CodeIdioms = {
  thunkKind(name) {
    if (!name.startsWith('__x86_')) return undefined;
    if (name === '__x86_return_thunk') return 'return';
    return name.startsWith('__x86_indirect_') ? 'indirect' : undefined;
  },

  thunkRegister(name) {
    const register = /^__x86_indirect_(?:jump_)?thunk_(\w+)$/.exec(name)?.[1];
    const number = register === undefined ? -1 : REGISTER_NAMES.indexOf(register);
    return number < 0 || number > 15 ? undefined : number;
  },

  relocationKind(type) {
    switch (type) {
      case R_X86_64_64:
        return ABSOLUTE_8;
      case R_X86_64_32:
      case R_X86_64_32S:
        return ABSOLUTE_4;
      case R_X86_64_PC32:
      case R_X86_64_PLT32:
        return RELATIVE_4;
      case R_X86_64_PC64:
        return RELATIVE_8;
      default:
        return undefined;
    }
  },

  isSlotRelocation: (type) => type === R_X86_64_GOTPCREL || type === R_X86_64_GOTPCRELX,

  farReference(type) {
    if (type === R_X86_64_64 || type === R_X86_64_GOTOFF64 || type === R_X86_64_PLTOFF64) return 'symbol';
    return type === R_X86_64_GOT64 ? 'slot' : undefined;
  },

  isHalt: (bytes, at, lengthBytes) => lengthBytes === 1 && bytes[at] === HLT,

  // clang up to 16, -fsanitize=function: `jmp .+8`, a signature, and where the function's type is, 4 bytes.
  leadingData(bytes, at) {
    if (bytes[at] !== JMP_SHORT || bytes[at + 1] !== 6) return undefined;
    const isSignature = FUNCTION_SIGNATURES.some(([a, b]) => bytes[at + 2] === a && bytes[at + 3] === b);
    return isSignature ? { start: at + 2, end: at + 8 } : undefined;
  },

  registerName(register) {
    return REGISTER_NAMES[register] ?? `r${register}?`;
  },
};

const HLT = 0xf4;
const JMP_SHORT = 0xeb;
/** `v2`, and `FT` before clang 5. */
const FUNCTION_SIGNATURES = [
  [0x76, 0x32],
  [0x46, 0x54],
] as const;

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
