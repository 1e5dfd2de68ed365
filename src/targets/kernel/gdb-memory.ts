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

/** Whether guest memory could not be read or written, as far as the stub or a page table tells. */
export function isMemoryError(error: unknown): boolean {
  return error instanceof LivegraftError && error.code === 'guest-memory';
}

/** Memory of a stopped guest; undefined where nothing is mapped. */
export async function tryRead(
  source: { readMemory(address: number, sizeBytes: number): Promise<Uint8Array> },
  address: number,
  sizeBytes: number,
): Promise<Uint8Array | undefined> {
  try {
    return await source.readMemory(address, sizeBytes);
  } catch (error) {
    if (isMemoryError(error)) return undefined;
    throw error;
  }
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
