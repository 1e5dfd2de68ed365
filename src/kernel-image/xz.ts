import { ByteReader } from '../base/byte-reader.js';
import { crc32 } from '../base/crc32.js';
import { joinBytes } from '../base/join-bytes.js';
import { MAX_UNPACKED_BYTES } from './limits.js';

const MAGIC = [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00];
const FILTER_X86 = 0x04;
const FILTER_LZMA2 = 0x21;
/** Bytes of each kind of check (The .xz File Format, 2.1.1.2). */
const CHECK_BYTES = [0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64];
const CHECK_CRC32 = 1;

/**
 * Decompresses the .xz stream of a packed kernel: any number of blocks of LZMA2, with or without the x86 filter, which
 * the libraries for LZMA2 do not know. `lzma2` decompresses a raw LZMA2 stream up to its end marker.
 * What follows the index is ignored. Throws a ParseError, whatever the bytes.
 */
export function decompressXz(
  bytes: Uint8Array,
  source: string,
  lzma2: (bytes: Uint8Array) => Uint8Array,
  maxBytes = MAX_UNPACKED_BYTES,
): Uint8Array {
  const reader = new ByteReader(bytes, source);
  if (!MAGIC.every((byte) => reader.readU8() === byte)) reader.fail('no xz stream');
  reader.skip(1);
  const check = reader.readU8() & 15;
  reader.skip(4);
  const blocks: Uint8Array[] = [];
  let unpackedBytes = 0;
  for (;;) {
    const start = reader.offset;
    const headerSize = reader.readU8();
    if (headerSize === 0) break;
    reader.seek(start);
    const usesX86 = readBlockHeader(reader.readReader((headerSize + 1) * 4));
    const stream = measureLzma2(bytes.subarray(reader.offset), reader);
    unpackedBytes += stream.unpackedBytes;
    if (unpackedBytes > maxBytes) reader.fail(`its xz data unpacks to more than ${maxBytes} bytes`);
    const data = reader.readBytes(stream.sizeBytes);
    let block: Uint8Array;
    try {
      block = lzma2(data);
    } catch {
      return reader.fail('its LZMA2 data is damaged');
    }
    if (usesX86) undoX86Filter(block);
    while ((reader.offset - start) % 4 !== 0) reader.skip(1);
    const stored = reader.readBytes(CHECK_BYTES[check] as number);
    if (check === CHECK_CRC32 && new ByteReader(stored, source).readU32() !== crc32(block))
      reader.fail('the checksum of a block is wrong');
    blocks.push(block);
  }
  return joinBytes(blocks);
}

/** Returns whether the x86 filter was used (section 3.1). */
function readBlockHeader(header: ByteReader): boolean {
  header.skip(1);
  const flags = header.readU8();
  if ((flags & 0x3c) !== 0) header.fail('unknown block flags');
  if ((flags & 0x40) !== 0) header.readUleb128();
  if ((flags & 0x80) !== 0) header.readUleb128();
  const filters: number[] = [];
  for (let i = 0; i <= (flags & 3); i++) {
    filters.push(header.readUleb128());
    header.skip(header.readUleb128());
  }
  const last = filters.pop();
  if (last !== FILTER_LZMA2 || filters.some((id) => id !== FILTER_X86) || filters.length > 1)
    return header.fail(`unknown filters ${[...filters, last].join(', ')}`);
  return filters.length === 1;
}

/** Up to and with the end marker: chunks say their sizes, packed and not (as in the kernel's xz_dec_lzma2.c). */
function measureLzma2(
  bytes: Uint8Array,
  reader: ByteReader,
): { readonly sizeBytes: number; readonly unpackedBytes: number } {
  const sizeAt = (at: number) => ((bytes[at] ?? 0) << 8) + (bytes[at + 1] ?? 0) + 1;
  let unpackedBytes = 0;
  let at = 0;
  for (;;) {
    const control = bytes[at];
    if (control === undefined) return reader.fail('its LZMA2 data has no end');
    if (control === 0) return { sizeBytes: at + 1, unpackedBytes };
    if (control < 0x80) {
      unpackedBytes += sizeAt(at + 1);
      at += 3 + sizeAt(at + 1);
    } else {
      unpackedBytes += ((control & 0x1f) << 16) + sizeAt(at + 1);
      at += (control >= 0xc0 ? 6 : 5) + sizeAt(at + 3);
    }
  }
}

/**
 * Turns the absolute targets of call and jump (e8, e9) back into relative ones, in place (the x86 filter of .xz, as
 * documented in its section 5.3.2 and implemented by the kernel's `lib/xz/xz_dec_bcj.c`). The encoder left a target
 * alone when its top byte is not 00 or ff, or when opcodes shortly before make it likely that this is no instruction:
 * `doubts` has a bit for each of the last three bytes that was such an opcode.
 */
function undoX86Filter(bytes: Uint8Array): void {
  let doubts = 0;
  let previous = -1;
  for (let at = 0; at + 5 <= bytes.length; at++) {
    if (((bytes[at] as number) & 0xfe) !== 0xe8) continue;
    const distance = at - previous;
    previous = at;
    doubts = distance > 3 ? 0 : (doubts << (distance - 1)) & 7;
    const doubtful = DOUBTFUL_BYTES[doubts] as number;
    const isRefused = doubts !== 0 && (doubtful < 0 || isSignByte(bytes[at + 4 - doubtful]));
    if (isRefused || !isSignByte(bytes[at + 4])) {
      doubts = (doubts << 1) | 1;
      continue;
    }
    let target = readTarget(bytes, at + 1) - (at + 5);
    // The byte in doubt must not look converted either; the encoder flipped bits until it did not.
    while (doubts !== 0 && isSignByte((target >>> (24 - 8 * doubtful)) & 0xff))
      target = (target ^ (2 ** (32 - 8 * doubtful) - 1)) - (at + 5);
    bytes[at + 1] = target & 0xff;
    bytes[at + 2] = (target >>> 8) & 0xff;
    bytes[at + 3] = (target >>> 16) & 0xff;
    bytes[at + 4] = (target & 0x0100_0000) === 0 ? 0 : 0xff;
    at += 4;
  }
}

/** Which byte of the target, from its top, the doubts concern; -1 where the encoder never converts. */
const DOUBTFUL_BYTES = [0, 1, 2, -1, 3, -1, -1, -1];

function isSignByte(byte: number | undefined): boolean {
  return byte === 0 || byte === 0xff;
}

function readTarget(bytes: Uint8Array, at: number): number {
  return new DataView(bytes.buffer, bytes.byteOffset + at, 4).getInt32(0, true);
}
