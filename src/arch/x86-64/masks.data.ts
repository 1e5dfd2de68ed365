import { DWARF_OF_HARDWARE } from './registers.js';

/** Masks by DWARF number for each mask of eight registers by hardware number: the low eight, the high eight. */
export const LOW_MASKS = maskTable(0);
export const HIGH_MASKS = maskTable(8);

function maskTable(first: number): Uint16Array {
  return Uint16Array.from({ length: 256 }, (_, bits) => {
    let mask = 0;
    for (let i = 0; i < 8; i++) if ((bits >> i) & 1) mask |= 1 << (DWARF_OF_HARDWARE[first + i] as number);
    return mask;
  });
}
