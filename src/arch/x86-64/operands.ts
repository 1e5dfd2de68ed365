import { Immediate } from './opcodes.js';
import { DWARF_OF_HARDWARE } from './registers.js';
import type { Scan } from './scanner.js';

/** The operands of the instruction that was scanned, as DWARF register numbers and signed values. */

export function dwarfOf(hardware: number): number {
  return DWARF_OF_HARDWARE[hardware] as number;
}

/** Hardware number of the register in ModRM.reg. */
export function regOperand(scan: Scan): number {
  return ((scan.modrm >> 3) & 7) | ((scan.rex & 4) << 1);
}

/** Hardware number of the register in ModRM.rm; only with a register operand. */
export function rmOperand(scan: Scan): number {
  return (scan.modrm & 7) | ((scan.rex & 1) << 3);
}

export function isRegisterForm(scan: Scan): boolean {
  return scan.modrm >= 0xc0;
}

/**
 * Hardware number of the base register of a memory operand that is `[base + displacement]` and nothing more: no index,
 * no segment base, 64-bit address size. -1 otherwise.
 */
export function plainBase(scan: Scan): number {
  if (scan.modrm >= 0xc0 || scan.ripRelative || scan.segment !== 0 || scan.addressSize) return -1;
  if (scan.sib < 0) return rmOperand(scan);
  const index = ((scan.sib >> 3) & 7) | ((scan.rex & 2) << 2);
  if (index !== 4) return -1;
  if ((scan.sib & 7) === 5 && scan.modrm < 0x40) return -1;
  return (scan.sib & 7) | ((scan.rex & 1) << 3);
}

export function displacement(scan: Scan): number {
  return readSigned(scan.bytes, scan.displacementAt, scan.displacementSize);
}

/** The immediate sign-extended; of an 8-byte one the low half, which no stack operation uses. */
export function immediate(scan: Scan): number {
  return readSigned(scan.bytes, scan.immediateAt, scan.immediateSize);
}

export function immediateWord(scan: Scan): number {
  return (scan.bytes[scan.immediateAt] as number) | ((scan.bytes[scan.immediateAt + 1] as number) << 8);
}

/** Whether the immediate is the relative target of a jump, branch or call. */
export function hasRelativeTarget(scan: Scan): boolean {
  return (
    scan.immediate === Immediate.relative8 ||
    scan.immediate === Immediate.relative32 ||
    (scan.map === 0 && scan.opcode === 0xc7 && scan.modrm === 0xf8)
  );
}

function readSigned(bytes: Uint8Array, at: number, size: number): number {
  const low = bytes[at] as number;
  if (size === 1) return (low << 24) >> 24;
  if (size === 2) return ((low << 16) | ((bytes[at + 1] as number) << 24)) >> 16;
  if (size >= 4) {
    return (
      low |
      ((bytes[at + 1] as number) << 8) |
      ((bytes[at + 2] as number) << 16) |
      ((bytes[at + 3] as number) << 24)
    );
  }
  return 0;
}
