import { ByteReader } from '../base/byte-reader.js';
import { joinBytes } from '../base/join-bytes.js';
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
  const blocks: Uint8Array[] = [];
  let total = 0;
  while (!reader.atEnd) {
    const sizeBytes = reader.readU32();
    if (sizeBytes === LEGACY_MAGIC) continue;
    const at = reader.offset;
    const block = decompressBlock(reader.readBytes(sizeBytes), () =>
      reader.fail(`the LZ4 block at ${at} is damaged`),
    );
    blocks.push(block);
    total += block.length;
    if (total > maxBytes) reader.fail(`its LZ4 data unpacks to more than ${maxBytes} bytes`);
    if (block.length < BLOCK_BYTES) break;
  }
  return joinBytes(blocks);
}

/** One block of sequences: token, literals, match (lz4_Block_format.md). */
function decompressBlock(input: Uint8Array, fail: () => never): Uint8Array {
  const output = new Uint8Array(BLOCK_BYTES);
  let [from, to] = [0, 0];
  const readLength = (nibble: number): number => {
    let length = nibble;
    if (nibble !== 15) return length;
    for (;;) {
      const more = input[from++];
      if (more === undefined) return fail();
      length += more;
      if (more !== 255) return length;
    }
  };
  while (from < input.length) {
    const token = input[from++] as number;
    const literals = readLength(token >> 4);
    if (literals > input.length - from || literals > BLOCK_BYTES - to) return fail();
    if (literals > LONG_COPY_BYTES) output.set(input.subarray(from, from + literals), to);
    else for (let i = 0; i < literals; i++) output[to + i] = input[from + i] as number;
    from += literals;
    to += literals;
    if (from === input.length) break;
    const distance = (input[from] as number) | ((input[from + 1] ?? 0) << 8);
    from += 2;
    const length = readLength(token & 15) + 4;
    if (distance === 0 || distance > to || length > BLOCK_BYTES - to) return fail();
    // Byte by byte where the match overlaps what it produces.
    if (length > LONG_COPY_BYTES && distance >= length)
      output.copyWithin(to, to - distance, to - distance + length);
    else for (let i = 0; i < length; i++) output[to + i] = output[to + i - distance] as number;
    to += length;
  }
  return output.slice(0, to);
}
