import { Decoder, DecoderOptions, FlowControl, Instruction } from 'iced-x86';
import type { Instruction as Ours } from '../../../src/arch/instruction.js';
import { decoder } from '../../../src/arch/x86-64/decoder.js';
import { SHF_EXECINSTR } from '../../../src/elf/constants.js';
import { parseElf } from '../../../src/elf/reader.js';
import { stackDifference } from './stack-effects.js';

export interface DecodedFile {
  readonly instructions: number;
  readonly mismatches: ReadonlyMap<string, { count: number; readonly example: string }>;
}

const CHUNK_BYTES = 4 * 1024 * 1024;

/** Sweeps the executable sections with both decoders; where they part, the sweep goes on by iced's length. */
export function compareFile(
  bytes: Uint8Array,
  source: string,
  limitBytes = Number.POSITIVE_INFINITY,
): DecodedFile {
  const mismatches = new Map<string, { count: number; example: string }>();
  let instructions = 0;
  let left = limitBytes;
  for (const section of parseElf(bytes, source).sections) {
    if ((section.flags & SHF_EXECINSTR) === 0 || section.sizeBytes === 0 || left <= 0) continue;
    for (let start = 0; start < section.data.length && left > 0; ) {
      const chunk = section.data.subarray(start, start + CHUNK_BYTES + 16);
      const done = compareChunk(chunk, start + CHUNK_BYTES >= section.data.length, (kind, at) => {
        const found = mismatches.get(kind);
        if (found === undefined) mismatches.set(kind, { count: 1, example: hexAt(chunk, at) });
        else found.count++;
      });
      instructions += done.instructions;
      start += done.bytes;
      left -= done.bytes;
    }
  }
  return { instructions, mismatches };
}

function compareChunk(bytes: Uint8Array, isLast: boolean, report: (kind: string, at: number) => void) {
  const iced = new Decoder(64, bytes, DecoderOptions.None);
  const instruction = new Instruction();
  let instructions = 0;
  iced.ip = 0n;
  while (iced.canDecode && (isLast || iced.position < bytes.length - 16)) {
    const at = iced.position;
    iced.decodeOut(instruction);
    instructions++;
    const ours = decoder.decode(bytes, at, at);
    const kind = difference(instruction, ours);
    if (kind !== undefined) report(kind, at);
  }
  const bytesDone = iced.position;
  iced.free();
  instruction.free();
  return { instructions, bytes: bytesDone };
}

function difference(iced: Instruction, ours: Ours | undefined): string | undefined {
  if (iced.isInvalid) return ours === undefined ? undefined : 'valid to us only';
  if (ours === undefined) return 'invalid to us only';
  if (ours.lengthBytes !== iced.length) return 'length';
  const flows = FLOWS[iced.flowControl] ?? [];
  if (!flows.includes(ours.flow)) return `flow: iced ${FlowControl[iced.flowControl]}, we ${ours.flow}`;
  if (ours.target !== undefined && BigInt.asIntN(64, iced.nearBranchTarget) !== BigInt(ours.target))
    return 'target';
  if (iced.isStackInstruction && ours.flow === 'next') {
    const change = stackPointerChange(ours);
    // enter and leave depend on registers; both sides say so in their own way.
    if (change !== undefined && change !== iced.stackPointerIncrement) {
      return `stack pointer: iced ${iced.stackPointerIncrement}, we ${change}`;
    }
  }
  return stackDifference(iced, ours);
}

const FLOWS: Readonly<Record<number, readonly Ours['flow'][]>> = {
  [FlowControl.Next]: ['next', 'deadEnd'],
  [FlowControl.UnconditionalBranch]: ['jump'],
  [FlowControl.IndirectBranch]: ['indirectJump'],
  [FlowControl.ConditionalBranch]: ['branch'],
  [FlowControl.Return]: ['return', 'interruptReturn'],
  [FlowControl.Call]: ['call', 'systemCall'],
  [FlowControl.IndirectCall]: ['indirectCall'],
  [FlowControl.Interrupt]: ['breakpoint', 'systemCall'],
  [FlowControl.XbeginXabortXend]: ['branch', 'next'],
  [FlowControl.Exception]: ['deadEnd'],
};

function stackPointerChange(instruction: Ours): number | undefined {
  let change = 0;
  for (const op of instruction.stackOps) {
    switch (op.kind) {
      case 'push':
      case 'pushOther':
        change -= op.sizeBytes;
        break;
      case 'pop':
      case 'popOther':
        change += op.sizeBytes;
        break;
      case 'leave':
      case 'enter':
        return undefined;
    }
  }
  return change;
}

function hexAt(bytes: Uint8Array, at: number): string {
  return Buffer.from(bytes.subarray(at, at + 12)).toString('hex');
}
