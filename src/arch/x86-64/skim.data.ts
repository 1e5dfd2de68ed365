import { FlowCode, makeEffect, OpCode } from '../instruction-table.js';
import { dwarfMask, effect, findEffect } from './effect.js';
import { flowOf } from './flow.js';
import { scan, scanInstruction } from './scanner.js';
import { ESCAPED, LOOK_ALWAYS, LOOKS, MODRM_SHIFT, NO_BASE, WIDE } from './skim-cells.js';
import { touchedBy, touchesFrame } from './touches.js';

/** The bytes from ModRM up to a displacement's end. */
export const MODRM_SIZES = Uint8Array.from({ length: 2 * NO_BASE }, (_, index) => {
  const modrm = index & 0xff;
  const [mod, rm] = [modrm >> 6, modrm & 7];
  if (mod === 3) return 1;
  const isBare = mod === 0 && (rm === 5 || (rm === 4 && index >= NO_BASE));
  return 1 + (rm === 4 ? 1 : 0) + (mod === 1 ? 1 : mod === 2 || isBare ? 4 : 0);
});

/** Which of {@link LOOKS} are so. */
export const MODRM_LOOKS = Uint16Array.from({ length: 256 }, (_, modrm) =>
  LOOKS.reduce((bits, { bit, test }) => bits | (test(modrm) ? bit : 0), LOOK_ALWAYS),
);

/** By opcode, REX.W and escape: see `skim-cells.ts`. Worked out from what the scanner says of every opcode and ModRM byte. */
export const SKIM_CELLS = Uint16Array.from({ length: 2 * ESCAPED }, (_, index) => makeCell(index));

function makeCell(index: number): number {
  const isEscaped = index >= ESCAPED;
  const prefixes = (index & WIDE) !== 0 ? [0x48, 0x49, 0x4c, 0x4d] : [0, 0x40, 0x41, 0x44, 0x45];
  const before = isEscaped ? 2 : 1;
  const bytes = new Uint8Array(48);
  /** Lengths without REX, and whether it is looked at, by ModRM byte; undefined when the length is not the same for all. */
  let fixed: number | undefined;
  let hasModrm: boolean | undefined;
  const isLooked = new Uint8Array(256);
  for (const rex of prefixes) {
    const at = rex === 0 ? 0 : 1;
    for (let modrm = 0; modrm < 256; modrm++) {
      for (const sib of [0x24, 0x25, 0]) {
        bytes.fill(0);
        bytes[0] = rex;
        if (isEscaped) bytes[at] = 0x0f;
        bytes[at + before - 1] = index & 0xff;
        bytes[at + before] = modrm;
        bytes[at + before + 1] = sib;
        if (!scanInstruction(bytes, 0, bytes.length)) {
          isLooked[modrm] = 1;
          continue;
        }
        findEffect(scan);
        const { op, a, b, writes } = effect;
        const flow = FlowCode[flowOf(scan)];
        const done = makeEffect(
          op,
          op === OpCode.none ? 0 : a,
          op === OpCode.none ? 0 : b,
          dwarfMask(writes),
        );
        if (touchesFrame(touchedBy(flow, done))) isLooked[modrm] = 1;
        const isBare = (sib & 7) === 5;
        const rest = scan.modrm < 0 ? 0 : (MODRM_SIZES[modrm | (isBare ? NO_BASE : 0)] as number);
        fixed ??= scan.lengthBytes - at - rest;
        hasModrm ??= scan.modrm >= 0;
        if (fixed !== scan.lengthBytes - at - rest || hasModrm !== scan.modrm >= 0) return LOOK_ALWAYS;
        // What another prefix or escape begins is not told by this opcode.
        if (scan.map !== (isEscaped ? 1 : 0) || scan.opcode !== (index & 0xff)) return LOOK_ALWAYS;
      }
    }
  }
  if (fixed === undefined) return LOOK_ALWAYS;
  return (
    (fixed - (before - 1)) |
    (hasModrm === true ? 1 << MODRM_SHIFT : 0) |
    looksFor(isLooked, hasModrm === true)
  );
}

/** Conditions of which one holds wherever one has to look. */
function looksFor(isLooked: Uint8Array, hasModrm: boolean): number {
  let bits = 0;
  if (!isLooked.includes(1)) return 0;
  if (!hasModrm || !isLooked.includes(0)) return LOOK_ALWAYS;
  for (let modrm = 0; modrm < 256; modrm++) {
    if (isLooked[modrm] === 0 || LOOKS.some(({ bit, test }) => (bits & bit) !== 0 && test(modrm))) continue;
    const found = LOOKS.find(({ test }) => test(modrm));
    if (found === undefined) return LOOK_ALWAYS;
    bits |= found.bit;
  }
  return bits;
}
