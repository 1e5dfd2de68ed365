/**
 * Takes one instruction apart: prefixes, opcode, ModRM, displacement, immediate (Intel SDM volume 2, chapter 2).
 * Everything else in this folder reads the result; nothing here knows what an instruction does.
 */
import {
  FAST_ONE_BYTE,
  FAST_TWO_BYTE,
  IS_3DNOW_SUFFIX,
  MAP_0F3A,
  MAP_0F3A_RESTRICTIONS,
  MAP_0F38,
  MAP_0F38_RESTRICTIONS,
  ONE_BYTE,
  ONE_BYTE_RESTRICTIONS,
  TWO_BYTE,
  TWO_BYTE_RESTRICTIONS,
} from './opcodes.data.js';
import {
  FAST_MODRM,
  HAS_MODRM,
  IMMEDIATE_MASK,
  Immediate,
  INVALID,
  IS_PREFIX,
  isPermitted,
  mandatoryPrefixIndex,
  RESTRICTED,
  SLOW,
} from './opcodes.js';
import { isValidVector } from './vector.js';

/** The encoding an opcode was found in. `map` counts 0 one-byte, 1 0F, 2 0F 38, 3 0F 3A, or is the vector map's number. */
export const Encoding = { legacy: 0, vex: 1, evex: 2, xop: 3, amd3dnow: 4 } as const;

export const MAX_INSTRUCTION_BYTES = 15;

/**
 * The parts of one instruction. There is one instance, overwritten by each scan: nobody keeps it across calls.
 * Positions index `bytes`; -1 stands for "absent".
 */
export class Scan {
  bytes: Uint8Array = new Uint8Array(0);
  start = 0;
  lengthBytes = 0;
  /** The REX byte, 0 without one; for vector encodings the equivalent bits (W 8, R 4, X 2, B 1). */
  rex = 0;
  operandSize = false;
  addressSize = false;
  /** The last of F2h and F3h, or 0. */
  repeat = 0;
  lock = false;
  /** 64h or 65h, or 0: the other segment prefixes mean nothing in 64-bit mode. */
  segment = 0;
  encoding: number = Encoding.legacy;
  map = 0;
  opcode = 0;
  modrm = -1;
  modrmAt = 0;
  sib = -1;
  displacementAt = 0;
  displacementSize = 0;
  ripRelative = false;
  immediate: number = Immediate.none;
  immediateAt = 0;
  immediateSize = 0;
  /** Vector encodings only: mandatory prefix (0 none, 1 66h, 2 F3h, 3 F2h), L'L, the un-inverted vvvv, EVEX's last byte. */
  vectorPrefix = 0;
  vectorLength = 0;
  vvvv = 0;
  evex = 0;
  /** EVEX.R' and X as the fifth bits of the register operands; un-inverted. */
  evexHighReg = 0;
}

export const scan = new Scan();

/** Per ModRM byte: 1 plus the displacement's size, plus {@link WITH_SIB} where a SIB byte follows. */
const WITH_SIB = 0x10;
const MODRM_SIZE = Uint8Array.from({ length: 256 }, (_, modrm) => {
  const mod = modrm >> 6;
  const rm = modrm & 7;
  if (mod === 3) return 1;
  const displacement = mod === 1 ? 1 : mod === 2 || rm === 5 ? 4 : 0;
  return 1 + displacement + (rm === 4 ? WITH_SIB : 0);
});

/** Instructions this close to the end of the input are scanned in a zero-padded copy, so that no read needs a check. */
const TAIL_BYTES = 32;
const tail = new Uint8Array(TAIL_BYTES);

/** Length of the instruction at `bytes[position]`, or 0 where there is none within `[position, end)`. */
export function scanLength(bytes: Uint8Array, position: number, end: number): number {
  if (end - position >= TAIL_BYTES && position >= 0 && end <= bytes.length) {
    let at = position;
    let byte = bytes[at] as number;
    if ((byte & 0xf0) === 0x40) byte = bytes[++at] as number;
    let fast: number;
    if (byte === 0x0f) {
      fast = FAST_TWO_BYTE[bytes[at + 1] as number] as number;
      if (fast < FAST_MODRM) return at - position + fast;
      if (fast !== SLOW) {
        const size = MODRM_SIZE[bytes[at + 2] as number] as number;
        if (size < WITH_SIB) return at - position + fast - FAST_MODRM + size;
        return at - position + fast - FAST_MODRM + sizeWithSib(bytes, at + 2, size);
      }
    } else {
      fast = FAST_ONE_BYTE[byte] as number;
      if (fast < FAST_MODRM) return at - position + fast;
      if (fast !== SLOW) {
        const size = MODRM_SIZE[bytes[at + 1] as number] as number;
        if (size < WITH_SIB) return at - position + fast - FAST_MODRM + size;
        return at - position + fast - FAST_MODRM + sizeWithSib(bytes, at + 1, size);
      }
    }
  }
  return scanInstruction(bytes, position, end) ? scan.lengthBytes : 0;
}

function sizeWithSib(bytes: Uint8Array, modrmAt: number, size: number): number {
  const withoutBase = ((bytes[modrmAt + 1] as number) & 7) === 5 && (bytes[modrmAt] as number) < 0x40;
  return size - WITH_SIB + (withoutBase ? 5 : 1);
}

/** Fills {@link scan} from the instruction at `bytes[position]`. False where there is no valid one in `[position, end)`. */
export function scanInstruction(bytes: Uint8Array, position: number, end: number): boolean {
  const limit = Math.min(end, bytes.length);
  if (!(position >= 0 && position < limit) || !Number.isInteger(position)) return false;
  const available = limit - position;
  if (available >= TAIL_BYTES) {
    scan.bytes = bytes;
    scan.start = position;
  } else {
    tail.fill(0, available);
    for (let i = 0; i < available; i++) tail[i] = bytes[position + i] as number;
    scan.bytes = tail;
    scan.start = 0;
  }
  return scanPrefixes() && scan.lengthBytes <= available;
}

function scanPrefixes(): boolean {
  const { bytes, start } = scan;
  scan.operandSize = false;
  scan.addressSize = false;
  scan.repeat = 0;
  scan.lock = false;
  scan.segment = 0;
  scan.encoding = Encoding.legacy;
  scan.modrm = -1;
  scan.sib = -1;
  scan.displacementSize = 0;
  scan.ripRelative = false;
  scan.immediateSize = 0;
  let rex = 0;
  let at = start;
  for (; ; at++) {
    const byte = bytes[at] as number;
    if (((ONE_BYTE[byte] as number) & IS_PREFIX) === 0) {
      scan.rex = rex;
      return finish(scanLegacy(at + 1, 0, byte, ONE_BYTE[byte] as number, ONE_BYTE_RESTRICTIONS[byte]));
    }
    if (at - start >= MAX_INSTRUCTION_BYTES - 1) return false;
    if ((byte & 0xf0) === 0x40) {
      rex = byte;
      continue;
    }
    switch (byte) {
      case 0x0f:
        scan.rex = rex;
        return finish(scanEscape(at + 1));
      case 0x62:
        return rex === 0 && !hasVectorConflict() && finish(scanEvex(at + 1));
      case 0xc4:
        return rex === 0 && !hasVectorConflict() && finish(scanVex3(at + 1));
      case 0xc5:
        return rex === 0 && !hasVectorConflict() && finish(scanVex2(at + 1));
      case 0x8f:
        // XOP's map number is 8 or more, which a ModRM byte of `pop` with its /0 can't look like.
        if (((bytes[at + 1] as number) & 0x1f) >= 8) {
          return rex === 0 && !hasVectorConflict() && finish(scanXop(at + 1));
        }
        scan.rex = rex;
        return finish(scanLegacy(at + 1, 0, 0x8f, HAS_MODRM | RESTRICTED, ONE_BYTE_RESTRICTIONS[0x8f]));
      case 0x66:
        scan.operandSize = true;
        break;
      case 0x67:
        scan.addressSize = true;
        break;
      case 0xf0:
        scan.lock = true;
        break;
      case 0xf2:
      case 0xf3:
        scan.repeat = byte;
        break;
      case 0x64:
      case 0x65:
        scan.segment = byte;
        break;
      default: // 26h, 2Eh, 36h, 3Eh have no effect on addresses.
        break;
    }
    // A REX prefix counts only right before the opcode (SDM volume 2, 2.2.1).
    rex = 0;
  }
}

/** SDM volume 2, 2.3.2 and 2.7.11: 66h, F2h, F3h, F0h and REX before a VEX, EVEX or XOP prefix are invalid. */
function hasVectorConflict(): boolean {
  return scan.operandSize || scan.repeat !== 0 || scan.lock;
}

function finish(end: number): boolean {
  scan.lengthBytes = end - scan.start;
  return end >= 0 && scan.lengthBytes <= MAX_INSTRUCTION_BYTES;
}

function scanEscape(at: number): number {
  const { bytes } = scan;
  const opcode = bytes[at] as number;
  if (opcode === 0x38) {
    const third = bytes[at + 1] as number;
    return scanLegacy(at + 2, 2, third, MAP_0F38[third] as number, MAP_0F38_RESTRICTIONS[third]);
  }
  if (opcode === 0x3a) {
    const third = bytes[at + 1] as number;
    return scanLegacy(at + 2, 3, third, MAP_0F3A[third] as number, MAP_0F3A_RESTRICTIONS[third]);
  }
  if (opcode === 0x0f) return scan3dNow(at + 1);
  return scanLegacy(at + 1, 1, opcode, TWO_BYTE[opcode] as number, TWO_BYTE_RESTRICTIONS[opcode]);
}

function scan3dNow(at: number): number {
  scan.encoding = Encoding.amd3dnow;
  scan.map = 1;
  const after = scanModrm(at);
  scan.opcode = scan.bytes[after] as number;
  scan.immediate = Immediate.none;
  return IS_3DNOW_SUFFIX[scan.opcode] === 1 && !scan.lock ? after + 1 : -1;
}

/** `at` is the byte after the opcode. Returns the position behind the instruction, or a negative number. */
function scanLegacy(
  at: number,
  map: number,
  opcode: number,
  cell: number,
  restriction: Uint8Array | undefined,
): number {
  if (cell & INVALID) return -1;
  scan.map = map;
  scan.opcode = opcode;
  scan.immediate = cell & IMMEDIATE_MASK;
  let after = at;
  if (cell & HAS_MODRM) {
    // Moves of control and debug registers ignore ModRM.mod (SDM volume 2, "MOV—Move to/from Control Registers").
    if (map === 1 && (opcode & 0xfc) === 0x20) {
      const modrm = scan.bytes[at] as number;
      if (!isControlMove(opcode, modrm)) return -1;
      scan.modrm = modrm | 0xc0;
      scan.modrmAt = at;
      return at + 1;
    }
    after = scanModrm(at);
    if (restriction !== undefined) {
      const prefix = mandatoryPrefixIndex(scan.operandSize, scan.repeat);
      if (!isPermitted(restriction, prefix, scan.modrm)) return -1;
    }
  }
  // ptwrite: "the 66h prefix is not allowed" (SDM volume 2).
  if (
    map === 1 &&
    opcode === 0xae &&
    scan.operandSize &&
    scan.repeat === 0xf3 &&
    (scan.modrm & 0x38) === 0x20
  ) {
    return -1;
  }
  // getsec and emms exist without a mandatory prefix only.
  if (map === 1 && (opcode === 0x37 || opcode === 0x77) && (scan.operandSize || scan.repeat !== 0)) return -1;
  if (scan.lock && !isLockable(map, opcode, scan.modrm)) return -1;
  if (scan.immediate === Immediate.none) return after;
  return scanImmediate(after);
}

function isControlMove(opcode: number, modrm: number): boolean {
  const register = ((modrm >> 3) & 7) | (scan.rex & 4 ? 8 : 0);
  if (scan.lock) return false;
  if (opcode & 1) return register < 8;
  return register === 0 || (register >= 2 && register <= 4) || register === 8;
}

function scanModrm(at: number): number {
  const { bytes } = scan;
  const modrm = bytes[at] as number;
  scan.modrm = modrm;
  scan.modrmAt = at;
  const size = MODRM_SIZE[modrm] as number;
  if (size < WITH_SIB) {
    scan.displacementAt = at + 1;
    scan.displacementSize = size - 1;
    scan.ripRelative = (modrm & 0xc7) === 5;
    return at + size;
  }
  const sib = bytes[at + 1] as number;
  scan.sib = sib;
  scan.displacementAt = at + 2;
  scan.displacementSize = (sib & 7) === 5 && modrm < 0x40 ? 4 : size - WITH_SIB - 1;
  return at + 2 + scan.displacementSize;
}

function scanImmediate(at: number): number {
  scan.immediateAt = at;
  const wide = (scan.rex & 8) !== 0;
  const operandBytes = scan.operandSize && !wide ? 2 : 4;
  let size = 0;
  switch (scan.immediate) {
    case Immediate.byte:
    case Immediate.relative8:
      size = 1;
      break;
    case Immediate.word:
      size = 2;
      break;
    case Immediate.operand:
      size = operandBytes;
      break;
    case Immediate.full:
      size = wide ? 8 : operandBytes;
      break;
    case Immediate.wordByte:
      size = 3;
      break;
    case Immediate.memoryOffset:
      size = scan.addressSize ? 4 : 8;
      break;
    case Immediate.relative32:
      size = 4;
      break;
    case Immediate.testByte:
      size = (scan.modrm & 0x30) === 0 ? 1 : 0;
      break;
    case Immediate.testOperand:
      size = (scan.modrm & 0x30) === 0 ? operandBytes : 0;
      break;
    case Immediate.extract:
      size = scan.repeat === 0xf2 || (scan.operandSize && scan.repeat === 0) ? 2 : 0;
      break;
    default:
      break;
  }
  scan.immediateSize = size;
  return at + size;
}

/** SDM volume 2, "LOCK": read-modify-write instructions with a memory destination. */
function isLockable(map: number, opcode: number, modrm: number): boolean {
  if (modrm < 0 || modrm >= 0xc0) return false;
  const reg = (modrm >> 3) & 7;
  if (map === 0) {
    if (opcode < 0x38) return (opcode & 6) === 0;
    switch (opcode) {
      case 0x80:
      case 0x81:
      case 0x83:
        return reg !== 7;
      case 0x86:
      case 0x87:
        return true;
      case 0xf6:
      case 0xf7:
        return reg === 2 || reg === 3;
      case 0xfe:
      case 0xff:
        return reg < 2;
      default:
        return false;
    }
  }
  if (map !== 1) return false;
  switch (opcode) {
    case 0xab:
    case 0xb0:
    case 0xb1:
    case 0xb3:
    case 0xbb:
    case 0xc0:
    case 0xc1:
      return true;
    case 0xba:
      return reg > 4;
    case 0xc7:
      return reg === 1;
    default:
      return false;
  }
}

function scanVex2(at: number): number {
  const p = scan.bytes[at] as number;
  scan.rex = p & 0x80 ? 0 : 4;
  return scanVexTail(at + 1, Encoding.vex, 1, p & 0x7f);
}

function scanVex3(at: number): number {
  const p = scan.bytes[at] as number;
  const q = scan.bytes[at + 1] as number;
  scan.rex = ((p >> 5) ^ 7) | (q & 0x80 ? 8 : 0);
  const map = p & 0x1f;
  if (map < 1 || map > 3) return -1;
  return scanVexTail(at + 2, Encoding.vex, map, q & 0x7f);
}

function scanXop(at: number): number {
  const p = scan.bytes[at] as number;
  const q = scan.bytes[at + 1] as number;
  scan.rex = ((p >> 5) ^ 7) | (q & 0x80 ? 8 : 0);
  const map = p & 0x1f;
  if (map < 8 || map > 10 || (q & 3) !== 0) return -1;
  return scanVexTail(at + 2, Encoding.xop, map, q & 0x7f);
}

/** `rest` is the last prefix byte without W: vvvv, L, pp. `at` is the opcode. */
function scanVexTail(at: number, encoding: number, map: number, rest: number): number {
  scan.encoding = encoding;
  scan.map = map;
  scan.vvvv = (rest >> 3) ^ 15;
  scan.vectorLength = (rest >> 2) & 1;
  scan.vectorPrefix = rest & 3;
  scan.evex = 0;
  scan.evexHighReg = 0;
  const opcode = scan.bytes[at] as number;
  scan.opcode = opcode;
  // vzeroupper and vzeroall are the only ones without a ModRM byte.
  const after = encoding === Encoding.vex && map === 1 && opcode === 0x77 ? at + 1 : scanModrm(at + 1);
  return scanVectorEnd(after);
}

function scanEvex(at: number): number {
  const p = scan.bytes[at] as number;
  const q = scan.bytes[at + 1] as number;
  const r = scan.bytes[at + 2] as number;
  const map = p & 7;
  if (p & 8 || (q & 4) === 0 || map === 0 || map === 4 || map === 7) return -1;
  scan.encoding = Encoding.evex;
  scan.map = map;
  scan.rex = ((p >> 5) ^ 7) | (q & 0x80 ? 8 : 0);
  scan.evexHighReg = p & 0x10 ? 0 : 16;
  scan.vvvv = (((q >> 3) & 15) | ((r & 8) << 1)) ^ 31;
  scan.vectorPrefix = q & 3;
  scan.vectorLength = (r >> 5) & 3;
  scan.evex = r;
  scan.opcode = scan.bytes[at + 3] as number;
  return scanVectorEnd(scanModrm(at + 4));
}

function scanVectorEnd(at: number): number {
  const size = vectorImmediateBytes(scan.encoding, scan.map, scan.opcode);
  scan.immediate = size === 0 ? Immediate.none : size === 1 ? Immediate.byte : Immediate.operand;
  scan.immediateAt = at;
  scan.immediateSize = size;
  return isValidVector(scan) ? at + size : -1;
}

function vectorImmediateBytes(encoding: number, map: number, opcode: number): number {
  if (encoding === Encoding.xop) return map === 8 ? 1 : map === 10 ? 4 : 0;
  if (map === 3) return 1;
  if (map !== 1) return 0;
  return (opcode & 0xfc) === 0x70 && opcode !== 0x77
    ? 1
    : opcode === 0xc2 || (opcode >= 0xc4 && opcode <= 0xc6)
      ? 1
      : 0;
}
