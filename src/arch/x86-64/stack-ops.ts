import type { Flow, StackOp } from '../instruction.js';
import { layout, MAP_0F, MAP_PRIMARY } from './encoding.js';
import { DW_RBP, DW_RSP, DWARF_OF_HARDWARE } from './registers.js';

const NONE: readonly StackOp[] = Object.freeze([]);
const CALL: readonly StackOp[] = Object.freeze([Object.freeze({ kind: 'callPush' as const })]);
const RETURN: readonly StackOp[] = Object.freeze([
  Object.freeze({ kind: 'returnPop' as const, extraBytes: 0 }),
]);
const LEAVE: readonly StackOp[] = Object.freeze([Object.freeze({ kind: 'leave' as const })]);

const RSP = 4;

/** Stack operations of the instruction that {@link layout} describes. */
export function stackOps(bytes: Uint8Array, position: number, flow: Flow): readonly StackOp[] {
  const l = layout;
  if (flow === 'call' || flow === 'indirectCall') return CALL;
  if (l.encoding !== 'legacy') return vectorClobbers();
  if (l.map === MAP_PRIMARY) return primaryOps(bytes, position, flow);
  if (l.map === MAP_0F) return twoByteOps();
  return NONE;
}

function pushPopSize(): number {
  return layout.operandSize16 ? 2 : 8;
}

function primaryOps(bytes: Uint8Array, position: number, flow: Flow): readonly StackOp[] {
  const l = layout;
  const { opcode, modrm } = l;
  if (opcode >= 0x50 && opcode <= 0x57) {
    return [{ kind: 'push', register: dwarf((opcode & 7) | l.rexB), sizeBytes: pushPopSize() }];
  }
  if (opcode >= 0x58 && opcode <= 0x5f) {
    return [{ kind: 'pop', register: dwarf((opcode & 7) | l.rexB), sizeBytes: pushPopSize() }];
  }
  if (opcode >= 0xb0 && opcode <= 0xbf) return clobber((opcode & 7) | l.rexB);
  if (opcode >= 0x90 && opcode <= 0x97) return exchange(opcode);
  switch (opcode) {
    case 0x68:
    case 0x6a:
      return [{ kind: 'pushOther', sizeBytes: pushPopSize(), source: 'immediate' }];
    case 0x9c:
      return [{ kind: 'pushOther', sizeBytes: pushPopSize(), source: 'flags' }];
    case 0x9d:
      return [{ kind: 'popOther', sizeBytes: pushPopSize(), target: 'flags' }];
    case 0x8f:
      return modrm >= 0xc0
        ? [{ kind: 'pop', register: dwarf((modrm & 7) | l.rexB), sizeBytes: pushPopSize() }]
        : [{ kind: 'popOther', sizeBytes: pushPopSize(), target: 'memory' }];
    case 0xc8:
      return [
        {
          kind: 'enter',
          sizeBytes: readU16(bytes, position + l.immediateAt),
          nesting: bytes[position + l.immediateAt + 2] as number,
        },
      ];
    case 0xc9:
      return LEAVE;
    case 0xc2:
      return [{ kind: 'returnPop', extraBytes: readU16(bytes, position + l.immediateAt) }];
    case 0xc3:
      return RETURN;
    case 0xca:
    case 0xcb:
      return flow === 'return' ? [{ kind: 'clobber', register: DW_RSP }] : NONE;
    case 0xcf:
      return [{ kind: 'clobber', register: DW_RSP }];
    case 0xff:
      if ((modrm & 0x38) === 0x30) return pushOperand();
      return (modrm & 0x38) <= 8 && modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0x8b:
      return moveTo(bytes, position);
    case 0x89:
      return moveFrom(bytes, position);
    case 0x8d:
      return loadAddress(bytes, position);
    case 0x81:
    case 0x83:
      return arithmeticImmediate(bytes, position);
    case 0x63:
    case 0x69:
    case 0x6b:
      return clobber(((modrm >> 3) & 7) | l.rexR);
    case 0x86:
    case 0x87:
      return [
        ...clobber(((modrm >> 3) & 7) | l.rexR),
        ...(modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE),
      ];
    case 0x88:
    case 0x8c:
    case 0xc0:
    case 0xc1:
    case 0xc6:
    case 0xc7:
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
    case 0xfe:
      return modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0x80:
      return modrm >= 0xc0 && (modrm & 0x38) !== 0x38 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0x8a:
      return clobber(((modrm >> 3) & 7) | l.rexR);
    case 0xf6:
    case 0xf7:
      // not and neg write their operand; mul and div write rax and rdx alone.
      return modrm >= 0xc0 && (modrm & 0x30) === 0x10 ? clobber((modrm & 7) | l.rexB) : NONE;
    default:
      return opcode < 0x40 ? arithmeticRegisters(opcode) : NONE;
  }
}

/** add, or, adc, sbb, and, sub, xor with register operands; cmp writes nothing. */
function arithmeticRegisters(opcode: number): readonly StackOp[] {
  const l = layout;
  if (opcode >= 0x38 || (opcode & 7) > 3) return NONE;
  if (opcode & 2) return clobber(((l.modrm >> 3) & 7) | l.rexR);
  return l.modrm >= 0xc0 ? clobber((l.modrm & 7) | l.rexB) : NONE;
}

function arithmeticImmediate(bytes: Uint8Array, position: number): readonly StackOp[] {
  const l = layout;
  if (l.modrm < 0xc0) return NONE;
  const register = (l.modrm & 7) | l.rexB;
  const value = readSigned(bytes, position + l.immediateAt, l.immediateBytes);
  const operation = (l.modrm >> 3) & 7;
  if (operation === 7) return NONE;
  if (l.wide && (register === RSP || register === 5)) {
    const number = dwarf(register);
    if (operation === 0) return [{ kind: 'add', destination: number, source: number, offset: value }];
    if (operation === 5) return [{ kind: 'add', destination: number, source: number, offset: -value }];
    if (operation === 4) return [{ kind: 'and', register: number, mask: value }];
  }
  return clobber(register);
}

function pushOperand(): readonly StackOp[] {
  const l = layout;
  return l.modrm >= 0xc0
    ? [{ kind: 'push', register: dwarf((l.modrm & 7) | l.rexB), sizeBytes: pushPopSize() }]
    : [{ kind: 'pushOther', sizeBytes: pushPopSize(), source: 'memory' }];
}

/** 8b: register from register or memory. */
function moveTo(bytes: Uint8Array, position: number): readonly StackOp[] {
  const l = layout;
  const destination = ((l.modrm >> 3) & 7) | l.rexR;
  if (!l.wide) return clobber(destination);
  if (l.modrm >= 0xc0) return move(destination, (l.modrm & 7) | l.rexB);
  const base = baseRegister();
  if (base === undefined) return clobber(destination);
  return [
    { kind: 'load', register: dwarf(destination), base: dwarf(base), offset: displacement(bytes, position) },
  ];
}

/** 89: register or memory from register. */
function moveFrom(bytes: Uint8Array, position: number): readonly StackOp[] {
  const l = layout;
  const source = ((l.modrm >> 3) & 7) | l.rexR;
  if (l.modrm >= 0xc0) {
    const destination = (l.modrm & 7) | l.rexB;
    return l.wide ? move(destination, source) : clobber(destination);
  }
  const base = l.wide ? baseRegister() : undefined;
  if (base === undefined) return NONE;
  return [
    { kind: 'store', register: dwarf(source), base: dwarf(base), offset: displacement(bytes, position) },
  ];
}

function move(destination: number, source: number): readonly StackOp[] {
  if (destination === RSP || source === RSP || destination === 5) {
    return [{ kind: 'add', destination: dwarf(destination), source: dwarf(source), offset: 0 }];
  }
  return clobber(destination);
}

function loadAddress(bytes: Uint8Array, position: number): readonly StackOp[] {
  const l = layout;
  const destination = ((l.modrm >> 3) & 7) | l.rexR;
  const base = baseRegister();
  if (!l.wide || l.address32 || base === undefined) return clobber(destination);
  if (destination !== RSP && destination !== 5 && base !== RSP) return clobber(destination);
  return [
    {
      kind: 'add',
      destination: dwarf(destination),
      source: dwarf(base),
      offset: displacement(bytes, position),
    },
  ];
}

/** xchg with rax; 90 itself is a nop. */
function exchange(opcode: number): readonly StackOp[] {
  const register = (opcode & 7) | layout.rexB;
  return register === 0 ? NONE : clobber(register);
}

function twoByteOps(): readonly StackOp[] {
  const l = layout;
  const { opcode, modrm } = l;
  switch (opcode) {
    case 0xa0:
    case 0xa8:
      return [{ kind: 'pushOther', sizeBytes: pushPopSize(), source: 'segment' }];
    case 0xa1:
    case 0xa9:
      return [{ kind: 'popOther', sizeBytes: pushPopSize(), target: 'segment' }];
  }
  if (opcode >= 0x40 && opcode <= 0x4f) return clobber(((modrm >> 3) & 7) | l.rexR);
  if (opcode >= 0xc8 && opcode <= 0xcf) return clobber((opcode & 7) | l.rexB);
  if (opcode >= 0x90 && opcode <= 0x9f) return modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE;
  switch (opcode) {
    case 0x02:
    case 0x03:
    case 0x2c:
    case 0x2d:
    case 0xaf:
    case 0xb6:
    case 0xb7:
    case 0xb8:
    case 0xbc:
    case 0xbd:
    case 0xbe:
    case 0xbf:
    case 0x50:
    case 0xc5:
    case 0xd7:
      return clobber(((modrm >> 3) & 7) | l.rexR);
    case 0xa4:
    case 0xa5:
    case 0xac:
    case 0xad:
    case 0xab:
    case 0xb3:
    case 0xbb:
      return modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0xba:
      return modrm >= 0xc0 && (modrm & 0x38) > 0x20 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0xb0:
    case 0xb1:
      return modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0xc0:
    case 0xc1:
      return [
        ...clobber(((modrm >> 3) & 7) | l.rexR),
        ...(modrm >= 0xc0 ? clobber((modrm & 7) | l.rexB) : NONE),
      ];
    case 0x7e:
      return modrm >= 0xc0 && l.repeat !== 0xf3 ? clobber((modrm & 7) | l.rexB) : NONE;
    case 0x20:
    case 0x21:
      return clobber((modrm & 7) | l.rexB);
    default:
      return NONE;
  }
}

/** BMI instructions and moves out of vector registers write general ones. */
function vectorClobbers(): readonly StackOp[] {
  const l = layout;
  if (l.encoding !== 'vex') return NONE;
  const reg = ((l.modrm >> 3) & 7) | l.rexR;
  if (l.map === 2 && (l.opcode === 0xf2 || l.opcode === 0xf5 || l.opcode === 0xf7)) return clobber(reg);
  if (l.map === 3 && l.opcode === 0xf0) return clobber(reg);
  if (
    l.map === 1 &&
    (l.opcode === 0x2c || l.opcode === 0x2d || l.opcode === 0x50 || l.opcode === 0xd7 || l.opcode === 0xc5)
  ) {
    return clobber(reg);
  }
  return NONE;
}

/** Only registers that a frame can hang on are worth a report: rsp, rbp and the other callee-saved ones. */
function clobber(hardware: number): readonly StackOp[] {
  return CLOBBERS[hardware] as readonly StackOp[];
}

const FRAME_REGISTERS = new Set([DW_RSP, DW_RBP, 3, 12, 13, 14, 15]);
const CLOBBERS: readonly (readonly StackOp[])[] = DWARF_OF_HARDWARE.map((register) =>
  FRAME_REGISTERS.has(register)
    ? Object.freeze([Object.freeze({ kind: 'clobber' as const, register })])
    : NONE,
);

function dwarf(hardware: number): number {
  return DWARF_OF_HARDWARE[hardware] as number;
}

/** Hardware number of the base register when the operand is `[base + displacement]` alone. */
function baseRegister(): number | undefined {
  const l = layout;
  if (l.ripRelative || l.modrm >= 0xc0 || l.segment === 0x64 || l.segment === 0x65) return undefined;
  if ((l.modrm & 7) !== 4) return (l.modrm & 7) | l.rexB;
  const hasIndex = ((l.sib >> 3) & 7) !== 4 || l.rexX !== 0;
  const hasNoBase = (l.sib & 7) === 5 && l.modrm < 0x40;
  return hasIndex || hasNoBase ? undefined : (l.sib & 7) | l.rexB;
}

function displacement(bytes: Uint8Array, position: number): number {
  return readSigned(bytes, position + layout.displacementAt, layout.displacementBytes);
}

function readSigned(bytes: Uint8Array, at: number, sizeBytes: number): number {
  switch (sizeBytes) {
    case 1:
      return ((bytes[at] as number) << 24) >> 24;
    case 2:
      return (readU16(bytes, at) << 16) >> 16;
    case 4:
      return readU16(bytes, at) | (readU16(bytes, at + 2) << 16);
    default:
      return 0;
  }
}

function readU16(bytes: Uint8Array, at: number): number {
  return (bytes[at] as number) | ((bytes[at + 1] as number) << 8);
}
