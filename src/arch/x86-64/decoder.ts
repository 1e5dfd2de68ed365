import type { InstructionDecoder } from '../architecture.js';
import type { Flow, Instruction, InstructionFields } from '../instruction.js';
import { layout, MAP_0F, MAP_PRIMARY, scan } from './encoding.js';
import { stackOps } from './stack-ops.js';

/** The instruction decoder of x86-64 in 64-bit mode. */
export const decoder: InstructionDecoder = {
  decode(bytes, position, address, end = bytes.length): Instruction | undefined {
    const lengthBytes = scan(bytes, position, end);
    if (lengthBytes === 0) return undefined;
    const flow = flowOf();
    if (flow === undefined) return undefined;
    const relative = flow === 'jump' || flow === 'branch' || flow === 'call';
    const target = relative ? address + lengthBytes + readImmediate(bytes, position) : undefined;
    return { offset: address, lengthBytes, flow, target, stackOps: stackOps(bytes, position, flow) };
  },

  length(bytes, position, end = bytes.length): number {
    return scan(bytes, position, end);
  },

  fields(bytes, position, end = bytes.length): InstructionFields | undefined {
    if (scan(bytes, position, end) === 0) return undefined;
    const l = layout;
    const flow = flowOf();
    const relative = flow === 'jump' || flow === 'branch' || flow === 'call';
    return {
      ripDisplacementAt: l.ripRelative ? l.displacementAt : undefined,
      relativeTargetAt: relative ? l.immediateAt : undefined,
      relativeTargetSizeBytes: relative ? (l.immediateBytes as 1 | 4) : 0,
      displacementAt: !l.ripRelative && l.displacementBytes > 0 ? l.displacementAt : undefined,
      displacementSizeBytes: l.ripRelative ? 0 : l.displacementBytes,
      immediateAt: !relative && l.immediateBytes > 0 ? l.immediateAt : undefined,
      immediateSizeBytes: relative ? 0 : (l.immediateBytes as 0 | 1 | 2 | 4 | 8),
    };
  },

  isPrecededByCall(bytes, position): boolean {
    // Direct calls end in 4 displacement bytes; compilers pad them with 48, 66 or 67 in TLS sequences.
    if (position >= 5 && bytes[position - 5] === 0xe8) return true;
    // ff /2 is 2 to 7 bytes, with one or two prefixes up to 9.
    for (let size = 2; size <= 9 && size <= position; size++) {
      const start = position - size;
      if (scan(bytes, start, position) !== size) continue;
      const l = layout;
      if (l.encoding === 'legacy' && l.map === MAP_PRIMARY && l.opcode === 0xff && isIndirectCall(l.modrm))
        return true;
    }
    return false;
  },
};

function isIndirectCall(modrm: number): boolean {
  const operation = (modrm >> 3) & 7;
  return operation === 2 || (operation === 3 && modrm < 0xc0);
}

function readImmediate(bytes: Uint8Array, position: number): number {
  const at = position + layout.immediateAt;
  if (layout.immediateBytes === 1) return ((bytes[at] as number) << 24) >> 24;
  return (
    (bytes[at] as number) |
    ((bytes[at + 1] as number) << 8) |
    ((bytes[at + 2] as number) << 16) |
    ((bytes[at + 3] as number) << 24)
  );
}

/** The flow of the instruction in {@link layout}; undefined for an undefined opcode. */
function flowOf(): Flow | undefined {
  const l = layout;
  if (l.encoding !== 'legacy') return 'next';
  if (l.map === MAP_PRIMARY) return primaryFlow(l.opcode, l.modrm);
  if (l.map !== MAP_0F) return 'next';
  const { opcode } = l;
  if (opcode >= 0x80 && opcode <= 0x8f) return 'branch';
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
      // uiret is f3 0f 01 ec.
      return l.modrm === 0xec && l.repeat === 0xf3 ? 'interruptReturn' : 'next';
    default:
      return 'next';
  }
}

function primaryFlow(opcode: number, modrm: number): Flow | undefined {
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
      return 'breakpoint';
    case 0xcd:
    case 0xf1:
      return 'systemCall';
    case 0xcf:
      return 'interruptReturn';
    case 0xf4:
      return 'deadEnd';
    case 0xc7:
      // xbegin may also continue at its target.
      if (modrm === 0xf8) return 'branch';
      return (modrm & 0x38) === 0 ? 'next' : undefined;
    case 0xff:
      switch ((modrm >> 3) & 7) {
        case 2:
          return 'indirectCall';
        case 3:
          return modrm < 0xc0 ? 'indirectCall' : undefined;
        case 4:
          return 'indirectJump';
        case 5:
          return modrm < 0xc0 ? 'indirectJump' : undefined;
        case 7:
          return undefined;
        default:
          return 'next';
      }
    case 0xfe:
      return (modrm & 0x38) <= 8 ? 'next' : undefined;
    default:
      return 'next';
  }
}
