/**
 * Which general registers an instruction writes, as far as anyone keeps a frame in them: rsp, rbp and the other
 * callee-saved ones. Writes that are stack operations of their own (push, pop, mov, lea, add ...) are in `stack-ops.ts`.
 *
 * Facts from the operand columns of the Intel SDM (volume 2) and the AMD64 manual (volumes 3 and 6).
 */
import type { StackOp } from '../instruction.js';
import { dwarfOf, isRegisterForm, regOperand, rmOperand } from './operands.js';
import { CALLEE_SAVED, DW_RSP } from './registers.js';
import { Encoding, type Scan } from './scanner.js';

export const NO_OPS: readonly StackOp[] = Object.freeze([]);

/** By hardware number: the clobber of that register, empty where nobody asks. Shared and frozen. */
const CLOBBERS: readonly (readonly StackOp[])[] = Array.from({ length: 16 }, (_, hardware) => {
  const register = dwarfOf(hardware);
  if (register !== DW_RSP && !CALLEE_SAVED.includes(register)) return NO_OPS;
  return Object.freeze([Object.freeze({ kind: 'clobber' as const, register })]);
});

export function clobber(hardware: number): readonly StackOp[] {
  return CLOBBERS[hardware] as readonly StackOp[];
}

export function clobberBoth(one: number, other: number): readonly StackOp[] {
  const first = clobber(one);
  const second = clobber(other);
  if (second.length === 0 || one === other) return first;
  return first.length === 0 ? second : [...first, ...second];
}

const HARDWARE_RBX = 3;

/** The operand that is written. With `Byte`, numbers 4 to 7 without a REX prefix are ah, ch, dh and bh. */
const Write = {
  nothing: 0,
  reg: 1,
  rm: 2,
  both: 3,
  opcode: 4,
  regByte: 5,
  rmByte: 6,
  bothByte: 7,
  opcodeByte: 8,
  /** ModRM, a prefix or the encoding decides. */
  depends: 9,
} as const;

function writeTable(entries: Readonly<Record<string, number>>): Uint8Array {
  const table = new Uint8Array(256);
  for (const [range, write] of Object.entries(entries)) {
    for (const part of range.split(' ')) {
      const [first = '', last = first] = part.split('-');
      table.fill(write, Number.parseInt(first, 16), Number.parseInt(last, 16) + 1);
    }
  }
  return table;
}

const ONE_BYTE_WRITES = writeTable({
  '00 08 10 18 20 28 30': Write.rmByte,
  '01 09 11 19 21 29 31': Write.rm,
  '02 0a 12 1a 22 2a 32': Write.regByte,
  '03 0b 13 1b 23 2b 33': Write.reg,
  '63 69 6b': Write.reg,
  '80 81 83': Write.depends,
  '86': Write.bothByte,
  '87': Write.both,
  '88': Write.rmByte,
  '8a': Write.regByte,
  '8c': Write.rm,
  '90-97': Write.opcode,
  'b0-b7': Write.opcodeByte,
  'b8-bf': Write.opcode,
  'c0 d0 d2': Write.rmByte,
  'c1 d1 d3': Write.rm,
  'c6 c7 f6 f7 fe ff': Write.depends,
});

const TWO_BYTE_WRITES = writeTable({
  '00 01 1e 2c 2d 7e a2 ae ba c7': Write.depends,
  '02 03': Write.reg,
  '20 21': Write.rm,
  '40-4f 50': Write.reg,
  '78': Write.depends,
  '90-9f': Write.rmByte,
  'a4 a5 ab ac ad b1 b3 bb': Write.rm,
  'af b2 b4-b8 bc-bf c5 d7': Write.reg,
  b0: Write.rmByte,
  c0: Write.bothByte,
  c1: Write.both,
  'c8-cf': Write.opcode,
});

export function registerWrites(scan: Scan): readonly StackOp[] {
  if (scan.encoding === Encoding.legacy) {
    switch (scan.map) {
      case 0:
        return legacyWrites(scan, ONE_BYTE_WRITES[scan.opcode] as number);
      case 1:
        return legacyWrites(scan, TWO_BYTE_WRITES[scan.opcode] as number);
      case 2:
        return map0f38Writes(scan);
      default:
        // pextrb, pextrw, pextrd and pextrq, extractps
        return scan.opcode >= 0x14 && scan.opcode <= 0x17 ? rmWrite(scan) : NO_OPS;
    }
  }
  if (scan.encoding === Encoding.amd3dnow) return NO_OPS;
  return scan.encoding === Encoding.xop ? xopWrites(scan) : vectorWrites(scan);
}

function legacyWrites(scan: Scan, write: number): readonly StackOp[] {
  switch (write) {
    case Write.reg:
      return clobber(regOperand(scan));
    case Write.rm:
      return rmWrite(scan);
    case Write.both:
      return isRegisterForm(scan)
        ? clobberBoth(regOperand(scan), rmOperand(scan))
        : clobber(regOperand(scan));
    case Write.opcode:
      // 90h alone is a nop, but it would name rax, which nobody asks for.
      return clobber((scan.opcode & 7) | ((scan.rex & 1) << 3));
    case Write.regByte:
      return clobber(byteRegister(scan, regOperand(scan)));
    case Write.rmByte:
      return rmByteWrite(scan);
    case Write.bothByte: {
      const reg = byteRegister(scan, regOperand(scan));
      return isRegisterForm(scan) ? clobberBoth(reg, byteRegister(scan, rmOperand(scan))) : clobber(reg);
    }
    case Write.opcodeByte:
      return clobber(byteRegister(scan, (scan.opcode & 7) | ((scan.rex & 1) << 3)));
    case Write.depends:
      return scan.map === 0 ? oneByteGroupWrites(scan) : twoByteGroupWrites(scan);
    default:
      return NO_OPS;
  }
}

function rmWrite(scan: Scan): readonly StackOp[] {
  return isRegisterForm(scan) ? clobber(rmOperand(scan)) : NO_OPS;
}

function rmByteWrite(scan: Scan): readonly StackOp[] {
  return isRegisterForm(scan) ? clobber(byteRegister(scan, rmOperand(scan))) : NO_OPS;
}

/** SDM volume 1, table 3-2: without REX, encodings 4 to 7 are the high bytes of rax, rcx, rdx and rbx. */
function byteRegister(scan: Scan, hardware: number): number {
  return scan.rex === 0 && hardware >= 4 ? hardware - 4 : hardware;
}

function oneByteGroupWrites(scan: Scan): readonly StackOp[] {
  const group = (scan.modrm >> 3) & 7;
  switch (scan.opcode) {
    case 0x80:
      return group === 7 ? NO_OPS : rmByteWrite(scan);
    case 0x81:
    case 0x83:
      return group === 7 ? NO_OPS : rmWrite(scan);
    case 0xc6:
      return group === 0 ? rmByteWrite(scan) : NO_OPS;
    case 0xc7:
      return group === 0 ? rmWrite(scan) : NO_OPS;
    case 0xf6:
      // not, neg; mul and div write rax and rdx.
      return group === 2 || group === 3 ? rmByteWrite(scan) : NO_OPS;
    case 0xf7:
      return group === 2 || group === 3 ? rmWrite(scan) : NO_OPS;
    case 0xfe:
      return rmByteWrite(scan);
    default:
      return group < 2 ? rmWrite(scan) : NO_OPS;
  }
}

function twoByteGroupWrites(scan: Scan): readonly StackOp[] {
  const group = (scan.modrm >> 3) & 7;
  switch (scan.opcode) {
    case 0x00: // sldt, str
      return group < 2 ? rmWrite(scan) : NO_OPS;
    case 0x01: // smsw; enclv, pconfig, encls and enclu take and return values in rbx
      if (group === 4) return rmWrite(scan);
      return scan.modrm === 0xc0 || scan.modrm === 0xc5 || scan.modrm === 0xcf || scan.modrm === 0xd7
        ? clobber(HARDWARE_RBX)
        : NO_OPS;
    case 0x1e: // rdsspd, rdsspq
      return scan.repeat === 0xf3 && group === 1 ? rmWrite(scan) : NO_OPS;
    case 0x2c:
    case 0x2d: // cvttss2si and its kind; without F2h or F3h the destination is an MMX register
      return scan.repeat === 0 ? NO_OPS : clobber(regOperand(scan));
    case 0x78: // vmread; extrq and insertq write vector registers
      return scan.repeat === 0 && !scan.operandSize ? rmWrite(scan) : NO_OPS;
    case 0x7e: // movd and movq out of a vector register; movq between them with F3h
      return scan.repeat === 0xf3 ? NO_OPS : rmWrite(scan);
    case 0xa2: // cpuid
      return clobber(HARDWARE_RBX);
    case 0xae: // rdfsbase, rdgsbase
      return scan.repeat === 0xf3 && group < 2 ? rmWrite(scan) : NO_OPS;
    case 0xba: // bts, btr, btc
      return group > 4 ? rmWrite(scan) : NO_OPS;
    default: // C7h: rdrand, rdseed, rdpid; senduipi reads
      return group === 7 || (group === 6 && scan.repeat !== 0xf3) ? rmWrite(scan) : NO_OPS;
  }
}

function map0f38Writes(scan: Scan): readonly StackOp[] {
  switch (scan.opcode) {
    case 0xf0: // movbe load, crc32
      return clobber(regOperand(scan));
    case 0xf1: // crc32; movbe store
      return scan.repeat === 0xf2 ? clobber(regOperand(scan)) : NO_OPS;
    case 0xf6: // adcx, adox; wrss writes memory
      return scan.operandSize || scan.repeat !== 0 ? clobber(regOperand(scan)) : NO_OPS;
    default:
      return NO_OPS;
  }
}

/** The mandatory prefixes of vector encodings. */
const P66 = 1;
const PF3 = 2;
const PF2 = 3;

function vectorWrites(scan: Scan): readonly StackOp[] {
  const { opcode, vectorPrefix: prefix } = scan;
  switch (scan.map) {
    case 1:
    case 5:
      if (opcode === 0x2c || opcode === 0x2d) return scalarConversion(scan);
      // vcvt(t)ss2usi and its kind exist as EVEX; 78h and 79h of VEX do not exist.
      if (opcode === 0x78 || opcode === 0x79) return scalarConversion(scan);
      if (opcode === 0x7e) return prefix === P66 ? rmWrite(scan) : NO_OPS;
      // vmovmskps, kmov, vpextrw, vpmovmskb
      if (scan.map === 1 && (opcode === 0x50 || opcode === 0x93 || opcode === 0xc5 || opcode === 0xd7)) {
        return scan.encoding === Encoding.vex || opcode === 0xc5 ? clobber(regOperand(scan)) : NO_OPS;
      }
      return NO_OPS;
    case 2:
      return scan.encoding === Encoding.vex ? vexMap2Writes(scan) : NO_OPS;
    case 3:
      if (opcode >= 0x14 && opcode <= 0x17) return rmWrite(scan);
      // rorx
      return opcode === 0xf0 && scan.encoding === Encoding.vex ? clobber(regOperand(scan)) : NO_OPS;
    default:
      return NO_OPS;
  }
}

function scalarConversion(scan: Scan): readonly StackOp[] {
  return scan.vectorPrefix === PF3 || scan.vectorPrefix === PF2 ? clobber(regOperand(scan)) : NO_OPS;
}

function vexMap2Writes(scan: Scan): readonly StackOp[] {
  const { opcode } = scan;
  if (opcode === 0xf2 || opcode === 0xf5 || opcode === 0xf7) return clobber(regOperand(scan));
  // blsr, blsmsk, blsi
  if (opcode === 0xf3) return clobber(scan.vvvv);
  // mulx
  if (opcode === 0xf6) return clobberBoth(regOperand(scan), scan.vvvv);
  // cmpccxadd
  return (opcode & 0xf0) === 0xe0 && scan.vectorPrefix === P66 ? clobber(regOperand(scan)) : NO_OPS;
}

function xopWrites(scan: Scan): readonly StackOp[] {
  const { map, opcode } = scan;
  // The TBM instructions write what vvvv names; slwpcb its operand; bextr its first.
  if (map === 9 && (opcode === 1 || opcode === 2)) return clobber(scan.vvvv);
  if (map === 9 && opcode === 0x12) return (scan.modrm & 0x38) === 8 ? rmWrite(scan) : NO_OPS;
  return map === 10 && opcode === 0x10 ? clobber(regOperand(scan)) : NO_OPS;
}
