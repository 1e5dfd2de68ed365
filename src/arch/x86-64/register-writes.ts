/**
 * Which general registers an instruction writes, as a mask by hardware number. Writes that are stack operations of
 * their own (push, pop, mov, lea, add ...) are in `effect.ts`.
 *
 * Facts from the operand columns of the Intel SDM (volume 2) and the AMD64 manual (volumes 3 and 6).
 */
import { isRegisterForm, regOperand, rmOperand } from './operands.js';
import { Encoding, type Scan } from './scanner.js';

/** The mask of one register. */
export function bitOf(hardware: number): number {
  return 1 << hardware;
}

export function bitsOf(one: number, other: number): number {
  return (1 << one) | (1 << other);
}

const [HARDWARE_RAX, HARDWARE_RCX, HARDWARE_RDX, HARDWARE_RBX, HARDWARE_RSI, HARDWARE_RDI] = [
  0, 1, 2, 3, 6, 7,
];
const RAX = bitOf(HARDWARE_RAX);
const RCX = bitOf(HARDWARE_RCX);
const RDX = bitOf(HARDWARE_RDX);
const RSI = bitOf(HARDWARE_RSI);
const RDI = bitOf(HARDWARE_RDI);
const R11 = bitOf(11);

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

/** Explicit operands, and the registers that an opcode stands for (SDM volume 2, "Operation" of each). */
export function registerWrites(scan: Scan): number {
  return operandWrites(scan) | impliedWrites(scan);
}

function impliedWrites(scan: Scan): number {
  if (scan.encoding !== Encoding.legacy || scan.map > 1) return 0;
  return scan.map === 0 ? oneByteImplied(scan) : twoByteImplied(scan);
}

function oneByteImplied(scan: Scan): number {
  const { opcode } = scan;
  const counter = scan.repeat === 0 ? 0 : RCX;
  // ALU operations of the accumulator with an immediate; cmp (3Ch, 3Dh) writes flags only.
  if (opcode < 0x3c && (opcode & 6) === 4) return RAX;
  if ((opcode & 0xf8) === 0x90) return opcode === 0x90 && (scan.rex & 1) === 0 ? 0 : RAX;
  switch (opcode) {
    case 0x6c: // ins
    case 0x6d:
    case 0xaa: // stos
    case 0xab:
    case 0xae: // scas
    case 0xaf:
      return RDI | counter;
    case 0x6e: // outs
    case 0x6f:
      return RSI | counter;
    case 0xa4: // movs, cmps
    case 0xa5:
    case 0xa6:
    case 0xa7:
      return RSI | RDI | counter;
    case 0xac: // lods
    case 0xad:
      return RAX | RSI | counter;
    case 0x98: // cbw, cwde, cdqe
    case 0x9f: // lahf
    case 0xa0: // mov from a memory offset
    case 0xa1:
    case 0xd7: // xlat
    case 0xe4: // in
    case 0xe5:
    case 0xec:
    case 0xed:
      return RAX;
    case 0x99: // cwd, cdq, cqo
      return RDX;
    case 0xcd: // int: what system calls return
      return RAX;
    case 0xe0: // loopne, loope, loop
    case 0xe1:
    case 0xe2:
      return RCX;
    case 0xf6: // mul, imul, div, idiv
      return (scan.modrm & 0x20) !== 0 ? RAX : 0;
    case 0xf7:
      return (scan.modrm & 0x20) !== 0 ? RAX | RDX : 0;
    default:
      return 0;
  }
}

function twoByteImplied(scan: Scan): number {
  switch (scan.opcode) {
    case 0x01: // vmcall and its kind return in rax; xgetbv, rdtscp, monitor's kin
      if (scan.modrm < 0xc0) return 0;
      return scan.modrm === 0xf9 ? RAX | RCX | RDX : RAX | RDX;
    case 0x05: // syscall
      return RAX | RCX | R11;
    case 0x31: // rdtsc
    case 0x32: // rdmsr
    case 0x33: // rdpmc
      return RAX | RDX;
    case 0xa2: // cpuid
      return RAX | RCX | RDX;
    case 0xb0: // cmpxchg
    case 0xb1:
      return RAX;
    case 0xc7: // cmpxchg8b, cmpxchg16b
      return scan.modrm < 0xc0 && (scan.modrm & 0x38) === 8 ? RAX | RDX : 0;
    default:
      return 0;
  }
}

function operandWrites(scan: Scan): number {
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
        return scan.opcode >= 0x14 && scan.opcode <= 0x17 ? rmWrite(scan) : 0;
    }
  }
  if (scan.encoding === Encoding.amd3dnow) return 0;
  return scan.encoding === Encoding.xop ? xopWrites(scan) : vectorWrites(scan);
}

function legacyWrites(scan: Scan, write: number): number {
  switch (write) {
    case Write.reg:
      return bitOf(regOperand(scan));
    case Write.rm:
      return rmWrite(scan);
    case Write.both:
      // xchg of a register with itself, all 64 bits of it, changes nothing.
      if (isRegisterForm(scan) && regOperand(scan) === rmOperand(scan) && (scan.rex & 8) !== 0) return 0;
      return isRegisterForm(scan) ? bitsOf(regOperand(scan), rmOperand(scan)) : bitOf(regOperand(scan));
    case Write.opcode:
      if (scan.opcode === 0x90 && (scan.rex & 1) === 0) return 0;
      return bitOf((scan.opcode & 7) | ((scan.rex & 1) << 3));
    case Write.regByte:
      return bitOf(byteRegister(scan, regOperand(scan)));
    case Write.rmByte:
      return rmByteWrite(scan);
    case Write.bothByte: {
      const reg = byteRegister(scan, regOperand(scan));
      return isRegisterForm(scan) ? bitsOf(reg, byteRegister(scan, rmOperand(scan))) : bitOf(reg);
    }
    case Write.opcodeByte:
      return bitOf(byteRegister(scan, (scan.opcode & 7) | ((scan.rex & 1) << 3)));
    case Write.depends:
      return scan.map === 0 ? oneByteGroupWrites(scan) : twoByteGroupWrites(scan);
    default:
      return 0;
  }
}

function rmWrite(scan: Scan): number {
  return isRegisterForm(scan) ? bitOf(rmOperand(scan)) : 0;
}

function rmByteWrite(scan: Scan): number {
  return isRegisterForm(scan) ? bitOf(byteRegister(scan, rmOperand(scan))) : 0;
}

/** SDM volume 1, table 3-2: without REX, encodings 4 to 7 are the high bytes of rax, rcx, rdx and rbx. */
function byteRegister(scan: Scan, hardware: number): number {
  return scan.rex === 0 && hardware >= 4 ? hardware - 4 : hardware;
}

function oneByteGroupWrites(scan: Scan): number {
  const group = (scan.modrm >> 3) & 7;
  switch (scan.opcode) {
    case 0x80:
      return group === 7 ? 0 : rmByteWrite(scan);
    case 0x81:
    case 0x83:
      return group === 7 ? 0 : rmWrite(scan);
    case 0xc6:
      return group === 0 ? rmByteWrite(scan) : 0;
    case 0xc7:
      return group === 0 ? rmWrite(scan) : 0;
    case 0xf6:
      // not, neg; mul and div write rax and rdx.
      return group === 2 || group === 3 ? rmByteWrite(scan) : 0;
    case 0xf7:
      return group === 2 || group === 3 ? rmWrite(scan) : 0;
    case 0xfe:
      return rmByteWrite(scan);
    default:
      return group < 2 ? rmWrite(scan) : 0;
  }
}

function twoByteGroupWrites(scan: Scan): number {
  const group = (scan.modrm >> 3) & 7;
  switch (scan.opcode) {
    case 0x00: // sldt, str
      return group < 2 ? rmWrite(scan) : 0;
    case 0x01: // smsw; enclv, pconfig, encls and enclu take and return values in rbx
      if (group === 4) return rmWrite(scan);
      return scan.modrm === 0xc0 || scan.modrm === 0xc5 || scan.modrm === 0xcf || scan.modrm === 0xd7
        ? bitOf(HARDWARE_RBX)
        : 0;
    case 0x1e: // rdsspd, rdsspq
      return scan.repeat === 0xf3 && group === 1 ? rmWrite(scan) : 0;
    case 0x2c:
    case 0x2d: // cvttss2si and its kind; without F2h or F3h the destination is an MMX register
      return scan.repeat === 0 ? 0 : bitOf(regOperand(scan));
    case 0x78: // vmread; extrq and insertq write vector registers
      return scan.repeat === 0 && !scan.operandSize ? rmWrite(scan) : 0;
    case 0x7e: // movd and movq out of a vector register; movq between them with F3h
      return scan.repeat === 0xf3 ? 0 : rmWrite(scan);
    case 0xa2: // cpuid
      return bitOf(HARDWARE_RBX);
    case 0xae: // rdfsbase, rdgsbase
      return scan.repeat === 0xf3 && group < 2 ? rmWrite(scan) : 0;
    case 0xba: // bts, btr, btc
      return group > 4 ? rmWrite(scan) : 0;
    default: // C7h: rdrand, rdseed, rdpid; senduipi reads
      return group === 7 || (group === 6 && scan.repeat !== 0xf3) ? rmWrite(scan) : 0;
  }
}

function map0f38Writes(scan: Scan): number {
  switch (scan.opcode) {
    case 0xf0: // movbe load, crc32
      return bitOf(regOperand(scan));
    case 0xf1: // crc32; movbe store
      return scan.repeat === 0xf2 ? bitOf(regOperand(scan)) : 0;
    case 0xf6: // adcx, adox; wrss writes memory
      return scan.operandSize || scan.repeat !== 0 ? bitOf(regOperand(scan)) : 0;
    default:
      return 0;
  }
}

/** The mandatory prefixes of vector encodings. */
const P66 = 1;
const PF3 = 2;
const PF2 = 3;

function vectorWrites(scan: Scan): number {
  const { opcode, vectorPrefix: prefix } = scan;
  switch (scan.map) {
    case 1:
    case 5:
      if (opcode === 0x2c || opcode === 0x2d) return scalarConversion(scan);
      // vcvt(t)ss2usi and its kind exist as EVEX; 78h and 79h of VEX do not exist.
      if (opcode === 0x78 || opcode === 0x79) return scalarConversion(scan);
      if (opcode === 0x7e) return prefix === P66 ? rmWrite(scan) : 0;
      // vmovmskps, kmov, vpextrw, vpmovmskb
      if (scan.map === 1 && (opcode === 0x50 || opcode === 0x93 || opcode === 0xc5 || opcode === 0xd7)) {
        return scan.encoding === Encoding.vex || opcode === 0xc5 ? bitOf(regOperand(scan)) : 0;
      }
      return 0;
    case 2:
      return scan.encoding === Encoding.vex ? vexMap2Writes(scan) : 0;
    case 3:
      if (opcode >= 0x14 && opcode <= 0x17) return rmWrite(scan);
      // rorx
      return opcode === 0xf0 && scan.encoding === Encoding.vex ? bitOf(regOperand(scan)) : 0;
    default:
      return 0;
  }
}

function scalarConversion(scan: Scan): number {
  return scan.vectorPrefix === PF3 || scan.vectorPrefix === PF2 ? bitOf(regOperand(scan)) : 0;
}

function vexMap2Writes(scan: Scan): number {
  const { opcode } = scan;
  if (opcode === 0xf2 || opcode === 0xf5 || opcode === 0xf7) return bitOf(regOperand(scan));
  // blsr, blsmsk, blsi
  if (opcode === 0xf3) return bitOf(scan.vvvv);
  // mulx
  if (opcode === 0xf6) return bitsOf(regOperand(scan), scan.vvvv);
  // cmpccxadd
  return (opcode & 0xf0) === 0xe0 && scan.vectorPrefix === P66 ? bitOf(regOperand(scan)) : 0;
}

function xopWrites(scan: Scan): number {
  const { map, opcode } = scan;
  // The TBM instructions write what vvvv names; slwpcb its operand; bextr its first.
  if (map === 9 && (opcode === 1 || opcode === 2)) return bitOf(scan.vvvv);
  if (map === 9 && opcode === 0x12) return (scan.modrm & 0x38) === 8 ? rmWrite(scan) : 0;
  return map === 10 && opcode === 0x10 ? bitOf(regOperand(scan)) : 0;
}
