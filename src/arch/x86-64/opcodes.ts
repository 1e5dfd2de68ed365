/**
 * What the cells of the legacy opcode maps mean (`opcodes.data.ts`): what follows an opcode, and which of its encodings
 * exist.
 */

/** What an opcode's immediate is; the size of some depends on prefixes. */
export const Immediate = {
  none: 0,
  byte: 1,
  word: 2,
  /** 16 bits with an effective operand size of 16, else 32 (Intel's `Iz`). */
  operand: 3,
  /** As `operand`, but 64 bits with REX.W (Intel's `Iv`). */
  full: 4,
  /** `enter`: 16 bits, then 8. */
  wordByte: 5,
  /** A memory offset of the address size: 64 bits, or 32 with 67h. */
  memoryOffset: 6,
  relative8: 7,
  relative32: 8,
  /** F6h: a byte for `test` only (/0, /1). */
  testByte: 9,
  /** F7h: as `operand`, for `test` only. */
  testOperand: 10,
  /** 0F 78h: two bytes with 66h or F2h (extrq, insertq), none otherwise (vmread). */
  extract: 11,
} as const;

export const IMMEDIATE_MASK = 0x0f;
export const HAS_MODRM = 0x10;
/** Some encodings of the opcode do not exist: {@link Restrictions} knows which. */
export const RESTRICTED = 0x20;
export const IS_PREFIX = 0x40;
export const INVALID = 0x80;

/** In the fast tables: a ModRM byte follows. */
export const FAST_MODRM = 0x10;
/** In the fast tables: the instruction must be taken apart as a whole. */
export const SLOW = 0xff;

/** For one opcode: 4 prefixes × (1 byte of memory forms, 8 bytes of register forms by ModRM.reg, one bit per r/m). */
export const STRIDE = 9;

/** Index of a mandatory prefix in a restriction: F2h and F3h win over 66h, the last of the two wins. */
export function mandatoryPrefixIndex(hasOperandSize: boolean, repeat: number): number {
  if (repeat === 0xf3) return 2;
  if (repeat === 0xf2) return 3;
  return hasOperandSize ? 1 : 0;
}

export function isPermitted(restriction: Uint8Array, prefixIndex: number, modrm: number): boolean {
  const base = prefixIndex * STRIDE;
  const reg = (modrm >> 3) & 7;
  if (modrm < 0xc0) return (((restriction[base] as number) >> reg) & 1) !== 0;
  return (((restriction[base + 1 + reg] as number) >> (modrm & 7)) & 1) !== 0;
}
