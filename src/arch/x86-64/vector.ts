/** Which VEX, EVEX and XOP encodings exist (SDM volume 2, 2.3 and 2.7; AMD64 manual volume 6 for XOP). */
import { VECTOR_ENCODINGS } from './vector-encodings.js';

/** The properties of an encoding, by the letter that states them in the table. */
const PROPERTY = {
  /** Memory operand. */
  m: 1 << 0,
  /** Register operand. */
  r: 1 << 1,
  /** ModRM.rm is part of the opcode: 0. */
  x: 1 << 2,
  /** vvvv names a vector or tile register. */
  v: 1 << 3,
  /** vvvv names a general register. */
  V: 1 << 4,
  /** vvvv names a mask register. */
  w: 1 << 5,
  /** ModRM.reg names a mask or tile register: R and R' must be clear. */
  k: 1 << 6,
  /** ModRM.reg names a general register: R' must be clear. */
  g: 1 << 7,
  /** ModRM.rm names a tile register: B must be clear. */
  T: 1 << 8,
  /** Vector SIB. */
  s: 1 << 9,
  /** A SIB byte is required. */
  S: 1 << 10,
  /** EVEX.b with memory: broadcast. */
  b: 1 << 11,
  /** EVEX.b with registers: rounding control, L'L is the rounding mode. */
  e: 1 << 12,
  /** EVEX.b with registers: all exceptions suppressed, L'L is ignored. */
  a: 1 << 13,
  /** An opmask other than k0 is required. */
  O: 1 << 14,
  o: 1 << 15,
  /** Zeroing-masking. */
  z: 1 << 16,
  /** All vector (or tile) registers differ. */
  u: 1 << 17,
  /** The destination differs from the sources. */
  d: 1 << 18,
  /** Zeroing-masking of a register destination; a memory destination can only be merged. */
  Z: 1 << 19,
} as const;

interface Variant {
  readonly properties: number;
  /** Bit W * 4 + L'L. */
  readonly lengths: number;
  /** Bit ModRM.reg. */
  readonly groups: number;
  /** The only ModRM byte, or -1. */
  readonly modrm: number;
}

/** By encoding, map and mandatory prefix ({@link groupOf}), then by opcode; read when an instruction asks for its group. */
const GROUPS: Variants[] = [];
type Variants = (readonly Variant[] | undefined)[];

const ENCODING_NAMES = ['', 'vex', 'evex', 'xop'];
/** Mandatory prefixes in the order of the pp field. */
const PREFIX_NAMES = 'n632';

function groupOf(encoding: number, map: number, prefix: number): number {
  return (encoding * 16 + map) * 4 + prefix;
}

function readGroup(encoding: number, map: number, prefix: number): Variants {
  const variants: Variants = new Array<undefined>(256).fill(undefined);
  const text = VECTOR_ENCODINGS[`${ENCODING_NAMES[encoding]} ${map} ${PREFIX_NAMES[prefix]}`];
  for (const entry of text?.split(' ') ?? []) {
    const [opcode = '', stated = ''] = entry.split(':');
    variants[Number.parseInt(opcode, 16)] = stated.split('/').map(parseVariant);
  }
  return variants;
}

function parseVariant(text: string): Variant {
  const [stated = '', lengths = '', groups = 'ff'] = text.split(',');
  const [letters = '', modrm] = stated.split('=');
  let properties = 0;
  for (const letter of letters) properties |= PROPERTY[letter as keyof typeof PROPERTY];
  return {
    properties,
    lengths: Number.parseInt(lengths, 16),
    groups: Number.parseInt(groups, 16),
    modrm: modrm === undefined ? -1 : Number.parseInt(modrm, 16),
  };
}

/** What a scan holds of a vector instruction. */
export interface VectorFields {
  readonly encoding: number;
  readonly map: number;
  readonly opcode: number;
  readonly vectorPrefix: number;
  readonly vectorLength: number;
  readonly vvvv: number;
  readonly rex: number;
  readonly modrm: number;
  readonly sib: number;
  /** EVEX's last prefix byte, 0 otherwise. */
  readonly evex: number;
  /** 16 with EVEX.R', else 0. */
  readonly evexHighReg: number;
}

const EVEX = 2;

export function isValidVector(fields: VectorFields): boolean {
  const { encoding, map, vectorPrefix } = fields;
  const group = groupOf(encoding, map, vectorPrefix);
  GROUPS[group] ??= readGroup(encoding, map, vectorPrefix);
  const variants = (GROUPS[group] as Variants)[fields.opcode];
  if (variants === undefined) return false;
  for (const variant of variants) if (isVariant(fields, variant)) return true;
  return false;
}

function isVariant(fields: VectorFields, variant: Variant): boolean {
  const { modrm, rex, vvvv, evex } = fields;
  const { properties } = variant;
  if (modrm < 0)
    return ((variant.lengths >> (((rex & 8) >> 1) | fields.vectorLength)) & 1) !== 0 && vvvv === 0;
  if (((variant.groups >> ((modrm >> 3) & 7)) & 1) === 0) return false;
  if (variant.modrm >= 0) {
    if (modrm !== variant.modrm) return false;
  } else if (properties & PROPERTY.x) {
    if (modrm < 0xc0 || (modrm & 7) !== 0) return false;
  } else if ((properties & (modrm >= 0xc0 ? PROPERTY.r : PROPERTY.m)) === 0) return false;

  let length = fields.vectorLength;
  if (evex & 0x10) {
    // EVEX.b
    if (modrm < 0xc0) {
      if ((properties & PROPERTY.b) === 0) return false;
    } else {
      if ((properties & (PROPERTY.e | PROPERTY.a)) === 0) return false;
      // The operands are as long as the instruction can have them.
      length = variant.lengths & 0x44 ? 2 : 0;
    }
  }
  if (((variant.lengths >> (((rex & 8) >> 1) | length)) & 1) === 0) return false;

  if ((properties & (PROPERTY.v | PROPERTY.V | PROPERTY.w)) === 0) {
    // V' extends the index of a vector SIB.
    if ((properties & PROPERTY.s ? vvvv & 15 : vvvv) !== 0) return false;
  } else if (properties & PROPERTY.w ? vvvv > 7 : properties & PROPERTY.V && vvvv > 15) return false;
  if (properties & PROPERTY.k && (rex & 4 || fields.evexHighReg)) return false;
  if (properties & PROPERTY.g && fields.evexHighReg) return false;
  if (properties & PROPERTY.S && fields.sib < 0) return false;
  if (properties & PROPERTY.s && fields.sib < 0) return false;
  if (fields.encoding === EVEX && !isMaskingValid(properties, evex, modrm)) return false;
  return (properties & (PROPERTY.u | PROPERTY.d)) === 0 || areRegistersDistinct(fields, properties);
}

function isMaskingValid(properties: number, evex: number, modrm: number): boolean {
  const opmask = evex & 7;
  if (opmask === 0 && properties & PROPERTY.O) return false;
  if (opmask !== 0 && (properties & (PROPERTY.o | PROPERTY.O)) === 0) return false;
  if ((evex & 0x80) === 0) return true;
  return opmask !== 0 && (properties & (modrm >= 0xc0 ? PROPERTY.z | PROPERTY.Z : PROPERTY.z)) !== 0;
}

function areRegistersDistinct(fields: VectorFields, properties: number): boolean {
  const { modrm, rex, sib, vvvv } = fields;
  const reg = ((modrm >> 3) & 7) | ((rex & 4) << 1) | fields.evexHighReg;
  if (properties & PROPERTY.s) {
    const index = ((sib >> 3) & 7) | ((rex & 2) << 2) | (fields.encoding === EVEX ? vvvv & 16 : 0);
    if (reg === index) return false;
    return (properties & PROPERTY.v) === 0 || (reg !== vvvv && index !== vvvv);
  }
  if (properties & PROPERTY.v && reg === vvvv) return false;
  if (modrm < 0xc0) return true;
  const high = fields.encoding === EVEX ? (rex & 2) << 3 : 0;
  const rm = (modrm & 7) | ((rex & 1) << 3) | high;
  if (properties & PROPERTY.u && properties & PROPERTY.T) {
    if (rm > 7 || vvvv > 7 || rm === vvvv) return false;
  }
  return reg !== rm;
}
