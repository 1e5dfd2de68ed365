import { ByteReader } from '../base/byte-reader.js';
import { MAX_UNPACKED_BYTES } from './limits.js';

const LEGACY_MAGIC = 0x184c2102;
/** The legacy frame cuts its input into pieces of 8 MiB. */
const BLOCK_BYTES = 8 * 1024 * 1024;
/** Below this a loop is faster than a call. */
const LONG_COPY_BYTES = 48;

/**
 * Decompresses LZ4's legacy frame, the form in which kernels are packed (lz4_Frame_format.md, "Legacy frame"): a magic
 * number, then blocks, each with its compressed size. Throws a ParseError, whatever the bytes.
 */
export function decompressLz4Legacy(
  bytes: Uint8Array,
  source: string,
  maxBytes = MAX_UNPACKED_BYTES,
): Uint8Array {
  const reader = new ByteReader(bytes, source);
  if (reader.readU32() !== LEGACY_MAGIC) reader.fail('no legacy LZ4 frame');
  // One piece of memory for all of it: what is not written to costs nothing.
  const output = new Uint8Array(Math.min(maxBytes, BLOCK_BYTES * countBlocks(bytes, source)));
  let total = 0;
  while (!reader.atEnd) {
    const sizeBytes = reader.readU32();
    if (sizeBytes === LEGACY_MAGIC) continue;
    const at = reader.offset;
    const input = reader.readBytes(sizeBytes);
    const room = output.subarray(total, total + BLOCK_BYTES);
    const blockBytes = decompressBlock(input, room);
    if (blockBytes < 0 && room.length < BLOCK_BYTES)
      reader.fail(`its LZ4 data unpacks to more than ${maxBytes} bytes`);
    if (blockBytes < 0) reader.fail(`the LZ4 block at ${at} is damaged`);
    total += blockBytes;
    if (blockBytes < BLOCK_BYTES) break;
  }
  return output.subarray(0, total);
}

/** No more than its bytes can unpack to: one byte of a length stands for 255. */
function countBlocks(bytes: Uint8Array, source: string): number {
  const reader = new ByteReader(bytes, source).seek(4);
  let blocks = 0;
  while (reader.remaining >= 4) {
    const sizeBytes = reader.readU32();
    if (sizeBytes === LEGACY_MAGIC) continue;
    blocks++;
    if (sizeBytes > reader.remaining) break;
    reader.skip(sizeBytes);
  }
  return Math.min(blocks, Math.ceil((bytes.length * 255) / BLOCK_BYTES));
}

/**
 * One block of sequences: token, literals, match (lz4_Block_format.md). Returns how many bytes it unpacked to, -1 for a damaged block
 * or one that does not fit. One loop with nothing to call, so that it is compiled once, while it runs.
 */
function decompressBlock(input: Uint8Array, output: Uint8Array): number {
  const inputBytes = input.length;
  const outputBytes = output.length;
  let from = 0;
  let to = 0;
  while (from < inputBytes) {
    const token = input[from++] as number;
    let literals = token >> 4;
    if (literals === 15) {
      let more = 255;
      while (more === 255) {
        if (from >= inputBytes) return -1;
        more = input[from++] as number;
        literals += more;
      }
    }
    if (literals > inputBytes - from || literals > outputBytes - to) return -1;
    if (literals > LONG_COPY_BYTES) output.set(input.subarray(from, from + literals), to);
    else for (let i = 0; i < literals; i++) output[to + i] = input[from + i] as number;
    from += literals;
    to += literals;
    if (from === inputBytes) break;
    if (from + 2 > inputBytes) return -1;
    const distance = (input[from] as number) | ((input[from + 1] as number) << 8);
    from += 2;
    let length = (token & 15) + 4;
    if (length === 15 + 4) {
      let more = 255;
      while (more === 255) {
        if (from >= inputBytes) return -1;
        more = input[from++] as number;
        length += more;
      }
    }
    if (distance === 0 || distance > to || length > outputBytes - to) return -1;
    // Byte by byte where the match overlaps what it produces.
    if (length > LONG_COPY_BYTES && distance >= length)
      output.copyWithin(to, to - distance, to - distance + length);
    else for (let i = 0; i < length; i++) output[to + i] = output[to + i - distance] as number;
    to += length;
  }
  return to;
}
