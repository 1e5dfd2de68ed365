import type { InstructionDecoder } from './architecture.js';

/** Whether an instruction of the code, which lies at `start`, calls or jumps to an address. It is looked at up to the first that can't be decoded. */
export function callsDirectly(
  decoder: InstructionDecoder,
  code: Uint8Array,
  start: number,
  address: number,
): boolean {
  for (let at = 0; at < code.length; ) {
    const instruction = decoder.decode(code, at, start + at);
    if (instruction === undefined) return false;
    if (instruction.target === address) return true;
    at += instruction.lengthBytes;
  }
  return false;
}
