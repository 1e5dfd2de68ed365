import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';

export interface MemoryPiece {
  readonly address: number;
  readonly sizeBytes: number;
}

export function readRequests(pieces: readonly MemoryPiece[]): readonly string[] {
  return pieces.map(
    ({ address, sizeBytes }) => `m${unsigned(address).toString(16)},${sizeBytes.toString(16)}`,
  );
}

export function parseReads(
  pieces: readonly MemoryPiece[],
  answers: readonly string[],
): readonly Uint8Array[] {
  return pieces.map(({ address, sizeBytes }, i) => {
    const answer = answers[i] as string;
    if (!/^[0-9a-f]+$/i.test(answer) || answer.length !== 2 * sizeBytes)
      throw memoryError('read', unsigned(address), answer);
    return fromHex(answer);
  });
}

export function memoryError(verb: string, address: bigint, answer: string): LivegraftError {
  return new LivegraftError(
    'guest-memory',
    `guest memory at ${hex(address)} can't be ${verb} (${answer === '' ? 'not supported' : answer})`,
  );
}

export function unsigned(address: number): bigint {
  return BigInt.asUintN(64, BigInt(address));
}

export function fromHex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text, 'hex'));
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}
