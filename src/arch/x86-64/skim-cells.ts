/**
 * What the cells of the skimmer's tables mean (`skim.data.ts`): how long an instruction is by its opcode and ModRM byte, and which have to be
 * taken apart.
 */

/** Index of a cell: the opcode, plus these with REX.W, and behind 0Fh. */
export const WIDE = 0x100;
export const ESCAPED = 0x200;

/** The size of opcode and immediate, without 0Fh. */
export const SIZE_MASK = 0x0f;
export const MODRM_SHIFT = 4;

/** Why an instruction has to be taken apart, a bit each; those of a cell count where the ModRM byte has them too. */
export const LOOK_ALWAYS = 0x8000;
/** What may be so of a ModRM byte: (modrm) => it is so. By the low three bits of register numbers, whatever REX adds. */
export const LOOKS: readonly { readonly bit: number; readonly test: (modrm: number) => boolean }[] = [
  { bit: 0x20, test: (modrm) => ((modrm >> 3) & 6) === 4 },
  { bit: 0x40, test: (modrm) => modrm >= 0xc0 && (modrm & 6) === 4 },
  { bit: 0x80, test: (modrm) => modrm < 0xc0 && ((modrm & 7) === 4 || ((modrm & 7) === 5 && modrm >= 0x40)) },
  { bit: 0x100, test: (modrm) => modrm >= 0xc0 },
  { bit: 0x200, test: (modrm) => (modrm & 0x38) !== 0 },
  { bit: 0x400, test: (modrm) => modrm < 0xc0 },
];

/** Added to a ModRM byte as an index where a SIB byte that may follow names no base register. */
export const NO_BASE = 0x100;
