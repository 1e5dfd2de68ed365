/**
 * How an x86-64 instruction is laid out: prefixes, opcode map, ModRM, displacement, immediate (Intel SDM volume 2,
 * chapter 2 and appendix A; AMD APM volume 3, appendix A, for XOP and 3DNow!).
 */

export const MAX_INSTRUCTION_BYTES = 15;

/** Opcode maps. */
export const MAP_PRIMARY = 0;
export const MAP_0F = 1;
export const MAP_0F38 = 2;
export const MAP_0F3A = 3;

export type Encoding = 'legacy' | 'vex' | 'evex' | 'xop';

/** One scratch record, overwritten by each {@link scan}: hot loops allocate nothing. Offsets count from `position`. */
export interface Layout {
  encoding: Encoding;
  map: number;
  opcode: number;
  /** Position of the opcode byte. */
  opcodeAt: number;
  /** REX.W, or the W bit of VEX and EVEX. */
  wide: boolean;
  rexR: number;
  rexX: number;
  rexB: number;
  hasRex: boolean;
  operandSize16: boolean;
  address32: boolean;
  repeat: 0 | 0xf2 | 0xf3;
  segment: number;
  /** -1 without a ModRM byte. */
  modrm: number;
  modrmAt: number;
  sib: number;
  displacementAt: number;
  displacementBytes: 0 | 1 | 4 | 8;
  ripRelative: boolean;
  immediateAt: number;
  immediateBytes: number;
  length: number;
}

export const layout: Layout = {
  encoding: 'legacy',
  map: 0,
  opcode: 0,
  opcodeAt: 0,
  wide: false,
  rexR: 0,
  rexX: 0,
  rexB: 0,
  hasRex: false,
  operandSize16: false,
  address32: false,
  repeat: 0,
  segment: 0,
  modrm: -1,
  modrmAt: 0,
  sib: -1,
  displacementAt: 0,
  displacementBytes: 0,
  ripRelative: false,
  immediateAt: 0,
  immediateBytes: 0,
  length: 0,
};

const MODRM = 0x10;
const IMM8 = 1;
/** 2 or 4 bytes by operand size. */
const IMMZ = 2;
/** 2, 4 or 8 bytes by operand size. */
const IMMV = 3;
const IMM16 = 4;
const IMM16_8 = 5;
/** Address-sized absolute offset. */
const MOFFS = 6;
/** A relative branch target: 32 bits whatever the operand size (Intel; AMD differs under a 66 prefix). */
const REL32 = 7;
/** Immediate only when ModRM.reg is 0 or 1 (test). */
const GROUP3 = 8;
const INVALID = 0x80;

function buildPrimary(): Uint8Array {
  const t = new Uint8Array(256).fill(0);
  const set = (from: number, to: number, kind: number) => t.fill(kind, from, to + 1);
  for (let row = 0; row < 0x40; row += 8) {
    set(row, row + 3, MODRM);
    t[row + 4] = IMM8;
    t[row + 5] = IMMZ;
    set(row + 6, row + 7, INVALID);
  }
  set(0x60, 0x62, INVALID);
  t[0x63] = MODRM;
  t[0x68] = IMMZ;
  t[0x69] = MODRM | IMMZ;
  t[0x6a] = IMM8;
  t[0x6b] = MODRM | IMM8;
  set(0x70, 0x7f, IMM8);
  t[0x80] = MODRM | IMM8;
  t[0x81] = MODRM | IMMZ;
  t[0x82] = INVALID;
  t[0x83] = MODRM | IMM8;
  set(0x84, 0x8f, MODRM);
  t[0x9a] = INVALID;
  set(0xa0, 0xa3, MOFFS);
  t[0xa8] = IMM8;
  t[0xa9] = IMMZ;
  set(0xb0, 0xb7, IMM8);
  set(0xb8, 0xbf, IMMV);
  set(0xc0, 0xc1, MODRM | IMM8);
  t[0xc2] = IMM16;
  t[0xc6] = MODRM | IMM8;
  t[0xc7] = MODRM | IMMZ;
  t[0xc8] = IMM16_8;
  t[0xca] = IMM16;
  t[0xcd] = IMM8;
  t[0xce] = INVALID;
  set(0xd0, 0xd3, MODRM);
  set(0xd4, 0xd6, INVALID);
  set(0xd8, 0xdf, MODRM);
  set(0xe0, 0xe7, IMM8);
  set(0xe8, 0xe9, REL32);
  t[0xea] = INVALID;
  t[0xeb] = IMM8;
  set(0xf6, 0xf7, MODRM | GROUP3);
  set(0xfe, 0xff, MODRM);
  return t;
}

function build0f(): Uint8Array {
  const t = new Uint8Array(256).fill(MODRM);
  const set = (from: number, to: number, kind: number) => t.fill(kind, from, to + 1);
  set(0x05, 0x09, 0);
  for (const opcode of [
    0x04, 0x0a, 0x0c, 0x24, 0x25, 0x26, 0x27, 0x36, 0x39, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x7a, 0x7b, 0xa6,
    0xa7,
  ]) {
    t[opcode] = INVALID;
  }
  t[0x0b] = 0;
  t[0x0e] = 0;
  t[0x0f] = MODRM | IMM8;
  set(0x30, 0x35, 0);
  t[0x37] = 0;
  set(0x70, 0x73, MODRM | IMM8);
  t[0x77] = 0;
  set(0x80, 0x8f, REL32);
  set(0xa0, 0xa2, 0);
  t[0xa4] = MODRM | IMM8;
  set(0xa8, 0xaa, 0);
  t[0xac] = MODRM | IMM8;
  t[0xba] = MODRM | IMM8;
  t[0xc2] = MODRM | IMM8;
  set(0xc4, 0xc6, MODRM | IMM8);
  set(0xc8, 0xcf, 0);
  return t;
}

const PRIMARY = buildPrimary();
const TWO_BYTE = build0f();

/**
 * Finds the layout of the instruction at `bytes[position]` into {@link layout}; returns its length, 0 for none.
 * Reads nothing at or behind `end`.
 */
export function scan(bytes: Uint8Array, position: number, end: number): number {
  const l = layout;
  const limit = Math.min(end, position + MAX_INSTRUCTION_BYTES);
  let at = position;
  l.encoding = 'legacy';
  l.map = MAP_PRIMARY;
  l.wide = false;
  l.rexR = l.rexX = l.rexB = 0;
  l.hasRex = false;
  l.operandSize16 = false;
  l.address32 = false;
  l.repeat = 0;
  l.segment = 0;
  l.modrm = -1;
  l.sib = -1;
  l.displacementBytes = 0;
  l.ripRelative = false;
  l.immediateBytes = 0;

  let byte = 0;
  prefixes: for (; ; at++) {
    if (at >= limit) return 0;
    byte = bytes[at] as number;
    switch (byte) {
      case 0x26:
      case 0x2e:
      case 0x36:
      case 0x3e:
      case 0x64:
      case 0x65:
        l.segment = byte;
        continue;
      case 0x66:
        l.operandSize16 = true;
        continue;
      case 0x67:
        l.address32 = true;
        continue;
      case 0xf2:
      case 0xf3:
        l.repeat = byte;
        continue;
      case 0xf0:
        continue;
      default:
        break prefixes;
    }
  }
  if ((byte & 0xf0) === 0x40) {
    // Only a REX directly before the opcode counts; another prefix behind it voids it.
    at++;
    if (at >= limit) return 0;
    const next = bytes[at] as number;
    if (isLegacyPrefix(next) || (next & 0xf0) === 0x40) return scanAfterVoidRex(bytes, position, at, end);
    l.hasRex = true;
    l.wide = (byte & 8) !== 0;
    l.rexR = (byte & 4) << 1;
    l.rexX = (byte & 2) << 2;
    l.rexB = (byte & 1) << 3;
    byte = next;
  }

  let kind: number;
  if ((byte === 0xc4 || byte === 0xc5 || byte === 0x62) && !l.hasRex) {
    const size = byte === 0xc5 ? 2 : byte === 0xc4 ? 3 : 4;
    if (at + size >= limit) return 0;
    kind = scanVectorPrefix(bytes, at, byte);
    if (kind === INVALID) return 0;
    at += size;
    byte = bytes[at] as number;
    kind = vectorKind(l.encoding, l.map, byte);
    if (kind === INVALID) return 0;
  } else if (byte === 0x8f && at + 1 < limit && ((bytes[at + 1] as number) & 0x1f) >= 8 && !l.hasRex) {
    if (at + 3 >= limit) return 0;
    l.encoding = 'xop';
    l.map = (bytes[at + 1] as number) & 0x1f;
    if (l.map > 10) return 0;
    setInvertedRex(bytes[at + 1] as number);
    l.wide = ((bytes[at + 2] as number) & 0x80) !== 0;
    at += 3;
    byte = bytes[at] as number;
    kind = l.map === 8 ? MODRM | IMM8 : l.map === 9 ? MODRM : MODRM | REL32;
  } else if (byte === 0x0f) {
    if (++at >= limit) return 0;
    byte = bytes[at] as number;
    if (byte === 0x38 || byte === 0x3a) {
      l.map = byte === 0x38 ? MAP_0F38 : MAP_0F3A;
      kind = byte === 0x38 ? MODRM : MODRM | IMM8;
      if (++at >= limit) return 0;
      byte = bytes[at] as number;
    } else {
      l.map = MAP_0F;
      kind = TWO_BYTE[byte] as number;
      // AMD's extrq and insertq take two immediate bytes.
      if (byte === 0x78 && (l.operandSize16 || l.repeat === 0xf2)) kind = MODRM | IMM16;
      else if (byte === 0xb8 && l.repeat !== 0xf3) return 0;
    }
  } else kind = PRIMARY[byte] as number;

  if (kind === INVALID) return 0;
  l.opcode = byte;
  l.opcodeAt = at - position;
  at++;
  if (kind & MODRM) {
    if (at >= limit) return 0;
    at = scanModrm(bytes, position, at, limit);
    if (at < 0) return 0;
  }
  const immediate = immediateSize(kind & 0xf);
  l.immediateAt = at - position;
  l.immediateBytes = immediate;
  at += immediate;
  if (at > limit) return 0;
  l.length = at - position;
  return l.length;
}

function isLegacyPrefix(byte: number): boolean {
  return (
    byte === 0x66 ||
    byte === 0x67 ||
    byte === 0xf0 ||
    byte === 0xf2 ||
    byte === 0xf3 ||
    byte === 0x26 ||
    byte === 0x2e ||
    byte === 0x36 ||
    byte === 0x3e ||
    byte === 0x64 ||
    byte === 0x65
  );
}

/** A REX that is followed by another prefix is ignored: scan on from behind it and add what was skipped. */
function scanAfterVoidRex(bytes: Uint8Array, position: number, next: number, end: number): number {
  const { operandSize16, address32, repeat, segment } = layout;
  const skipped = next - position;
  const length = scan(bytes, next, Math.min(end, position + MAX_INSTRUCTION_BYTES));
  if (length === 0) return 0;
  const l = layout;
  // Prefixes before the REX count; the operand size can change an immediate, so such oddities are given up.
  if (operandSize16 && !l.operandSize16) return 0;
  l.address32 ||= address32;
  if (l.repeat === 0) l.repeat = repeat;
  if (l.segment === 0) l.segment = segment;
  l.opcodeAt += skipped;
  l.modrmAt += skipped;
  l.displacementAt += skipped;
  l.immediateAt += skipped;
  l.length += skipped;
  return l.length;
}

function setInvertedRex(byte: number): void {
  layout.rexR = byte & 0x80 ? 0 : 8;
  layout.rexX = byte & 0x40 ? 0 : 8;
  layout.rexB = byte & 0x20 ? 0 : 8;
}

/** Fills encoding, map and W of a VEX or EVEX prefix. */
function scanVectorPrefix(bytes: Uint8Array, at: number, byte: number): number {
  const l = layout;
  const second = bytes[at + 1] as number;
  if (byte === 0xc5) {
    l.encoding = 'vex';
    l.map = MAP_0F;
    l.rexR = second & 0x80 ? 0 : 8;
    return 0;
  }
  setInvertedRex(second);
  l.wide = ((bytes[at + 2] as number) & 0x80) !== 0;
  if (byte === 0xc4) {
    l.encoding = 'vex';
    l.map = second & 0x1f;
    return l.map >= 1 && l.map <= 3 ? 0 : INVALID;
  }
  l.encoding = 'evex';
  l.map = second & 0x07;
  if ((second & 0x08) !== 0 || ((bytes[at + 2] as number) & 0x04) === 0) return INVALID;
  return l.map === 0 || l.map === 4 || l.map === 7 ? INVALID : 0;
}

function vectorKind(encoding: Encoding, map: number, opcode: number): number {
  if (map === MAP_0F3A) return MODRM | IMM8;
  if (map !== MAP_0F) return MODRM;
  if (opcode === 0x77 && encoding === 'vex') return 0;
  const hasImmediate =
    (opcode >= 0x70 && opcode <= 0x73) || opcode === 0xc2 || (opcode >= 0xc4 && opcode <= 0xc6);
  return hasImmediate ? MODRM | IMM8 : MODRM;
}

/** Returns the position behind ModRM, SIB and displacement, -1 when they don't fit. */
function scanModrm(bytes: Uint8Array, position: number, start: number, limit: number): number {
  const l = layout;
  let at = start;
  const modrm = bytes[at] as number;
  l.modrm = modrm;
  l.modrmAt = at - position;
  at++;
  const mod = modrm >> 6;
  // mov to and from control and debug registers ignore mod: both operands are registers.
  const registersOnly = l.encoding === 'legacy' && l.map === MAP_0F && l.opcode >= 0x20 && l.opcode <= 0x23;
  if (mod === 3 || registersOnly) return at;
  let displacement: 0 | 1 | 4 = mod === 1 ? 1 : mod === 2 ? 4 : 0;
  if ((modrm & 7) === 4) {
    if (at >= limit) return -1;
    l.sib = bytes[at] as number;
    at++;
    if (mod === 0 && (l.sib & 7) === 5) displacement = 4;
  } else if (mod === 0 && (modrm & 7) === 5) {
    displacement = 4;
    l.ripRelative = true;
  }
  l.displacementAt = at - position;
  l.displacementBytes = displacement;
  at += displacement;
  return at > limit ? -1 : at;
}

function immediateSize(kind: number): number {
  const l = layout;
  switch (kind) {
    case IMM8:
      return 1;
    case IMMZ:
      return l.operandSize16 && !l.wide ? 2 : 4;
    case IMMV:
      return l.wide ? 8 : l.operandSize16 ? 2 : 4;
    case IMM16:
      return 2;
    case IMM16_8:
      return 3;
    case MOFFS:
      return l.address32 ? 4 : 8;
    case REL32:
      return 4;
    case GROUP3:
      if ((l.modrm & 0x38) > 8) return 0;
      return l.opcode === 0xf6 ? 1 : l.operandSize16 && !l.wide ? 2 : 4;
    default:
      return 0;
  }
}
