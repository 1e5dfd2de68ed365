import type { Flow } from '../instruction.js';
import { Encoding, type Scan } from './scanner.js';

/** Where control goes after the instruction that was scanned (SDM volume 1, chapter 7.3, and volume 2). */
export function flowOf(scan: Scan): Flow {
  if (scan.encoding !== Encoding.legacy || scan.map > 1) return 'next';
  return scan.map === 0 ? (ONE_BYTE_FLOW[scan.opcode] ?? groupFlow(scan)) : twoByteFlow(scan);
}

/** By opcode; undefined where ModRM decides. */
const ONE_BYTE_FLOW: readonly (Flow | undefined)[] = Array.from({ length: 256 }, (_, opcode) => {
  if (opcode >= 0x70 && opcode <= 0x7f) return 'branch';
  switch (opcode) {
    case 0xe0:
    case 0xe1:
    case 0xe2:
    case 0xe3:
      return 'branch';
    case 0xe8:
      return 'call';
    case 0xe9:
    case 0xeb:
      return 'jump';
    case 0xc2:
    case 0xc3:
    case 0xca:
    case 0xcb:
      return 'return';
    case 0xcc:
    case 0xf1:
      return 'breakpoint';
    case 0xcd:
      return 'systemCall';
    case 0xcf:
      return 'interruptReturn';
    case 0xf4:
      return 'deadEnd';
    case 0xc7:
    case 0xff:
      return undefined;
    default:
      return 'next';
  }
});

function groupFlow(scan: Scan): Flow {
  // xbegin continues at its target when the transaction aborts.
  if (scan.opcode === 0xc7) return scan.modrm === 0xf8 ? 'branch' : 'next';
  switch ((scan.modrm >> 3) & 7) {
    case 2:
    case 3:
      return 'indirectCall';
    case 4:
    case 5:
      return 'indirectJump';
    default:
      return 'next';
  }
}

function twoByteFlow(scan: Scan): Flow {
  const { opcode } = scan;
  if ((opcode & 0xf0) === 0x80) return 'branch';
  switch (opcode) {
    case 0x05:
    case 0x34:
      return 'systemCall';
    case 0x07:
    case 0x35:
    case 0xaa:
      return 'interruptReturn';
    case 0x0b:
    case 0xb9:
    case 0xff:
      return 'deadEnd';
    case 0x01:
      // uiret is F3 0F 01 EC; eretu and erets (FRED) are F3 and F2 0F 01 CA.
      return (scan.modrm === 0xec && scan.repeat === 0xf3) || (scan.modrm === 0xca && scan.repeat !== 0)
        ? 'interruptReturn'
        : 'next';
    default:
      return 'next';
  }
}
