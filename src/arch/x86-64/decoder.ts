import type { InstructionDecoder } from '../architecture.js';
import type { Instruction, InstructionFields } from '../instruction.js';
import { effectToOps, findEffect } from './effect.js';
import { flowOf } from './flow.js';
import { Immediate } from './opcodes.js';
import { hasRelativeTarget, immediate } from './operands.js';
import { scan, scanInstruction, scanLength } from './scanner.js';

/**
 * Decodes 64-bit mode. Near branches with 66h are decoded as Intel's processors do (a 32-bit displacement); see
 * `docs/decoder-agreement.md` for where processors and decoders differ.
 */
export const decoder: InstructionDecoder = {
  decode(bytes, position, address, end = bytes.length): Instruction | undefined {
    if (!scanInstruction(bytes, position, end)) return undefined;
    const { lengthBytes } = scan;
    findEffect(scan);
    return {
      offset: address,
      lengthBytes,
      flow: flowOf(scan),
      target: hasRelativeTarget(scan) ? address + lengthBytes + immediate(scan) : undefined,
      stackOps: effectToOps(),
    };
  },

  length(bytes, position, end = bytes.length): number {
    return scanLength(bytes, position, end);
  },

  fields(bytes, position, end = bytes.length): InstructionFields | undefined {
    if (!scanInstruction(bytes, position, end)) return undefined;
    const { start } = scan;
    const isRelative = hasRelativeTarget(scan);
    const isOffset = scan.immediate === Immediate.memoryOffset;
    // Of the two immediates of `enter` the first.
    const immediateSize = scan.immediate === Immediate.wordByte ? 2 : scan.immediateSize;
    const hasImmediate = !isRelative && !isOffset && immediateSize > 0;
    const displacementSize = isOffset ? scan.immediateSize : scan.ripRelative ? 0 : scan.displacementSize;
    const displacementAt = (isOffset ? scan.immediateAt : scan.displacementAt) - start;
    return {
      ripDisplacementAt: scan.ripRelative ? scan.displacementAt - start : undefined,
      relativeTargetAt: isRelative ? scan.immediateAt - start : undefined,
      relativeTargetSizeBytes: isRelative ? (scan.immediateSize as 1 | 2 | 4) : 0,
      displacementAt: displacementSize > 0 ? displacementAt : undefined,
      displacementSizeBytes: displacementSize as 0 | 1 | 4 | 8,
      immediateAt: hasImmediate ? scan.immediateAt - start : undefined,
      immediateSizeBytes: hasImmediate ? (immediateSize as 1 | 2 | 4 | 8) : 0,
    };
  },

  isPrecededByCall(bytes, position): boolean {
    if (!Number.isInteger(position) || position > bytes.length) return false;
    if (position >= 5 && bytes[position - 5] === 0xe8) return true;
    // Prefixes (REX, 66h, 67h, notrack, bnd) do not change the length of what follows them, so that a prefixed call
    // ends in the bytes of the same call without its prefixes: those are all that need to be tried.
    for (let size = 2; size <= LONGEST_INDIRECT_CALL && size <= position; size++) {
      const start = position - size;
      if (bytes[start] !== 0xff || ((bytes[start + 1] as number) & 0x38) !== 0x10) continue;
      if (scanInstruction(bytes, start, position) && scan.lengthBytes === size) return true;
    }
    return false;
  },
};

/** FFh, ModRM, SIB, 4 bytes of displacement. */
const LONGEST_INDIRECT_CALL = 7;
