import { gunzipSync, inflateSync } from 'node:zlib';
import { lzma2 } from '@napi-rs/lzma';
import { Decompress as ZstdStream } from 'fzstd';
import { joinBytes } from '../base/join-bytes.js';
import type { ElfReaderOptions } from '../elf/reader.js';
import type { Decompressors } from '../kernel-image/decompress.js';
import { MAX_UNPACKED_BYTES, MAX_WINDOW_BYTES } from '../kernel-image/limits.js';
import { largestZstdWindow } from '../kernel-image/zstd-window.js';

/** The libraries behind packed kernels and modules. */
export const decompressors: Decompressors = {
  gzip: (bytes) => gunzipSync(bytes, { maxOutputLength: MAX_UNPACKED_BYTES }),
  zstd: unpackBounded,
  lzma2: (bytes) => new Uint8Array(lzma2.decompressSync(bytes)),
};

/** For compressed sections of ELF files. */
export const sectionDecompressors: ElfReaderOptions = {
  inflate: (bytes, sizeBytes) => inflateSync(bytes, { maxOutputLength: Math.max(1, sizeBytes) }),
  // Node's own zlib has zstd from version 22 on.
  zstd: unpackZstd,
};

/** The library makes the window at once, whatever its size. */
function expectWindow(bytes: Uint8Array): void {
  const window = largestZstdWindow(bytes);
  if (window > MAX_WINDOW_BYTES)
    throw new RangeError(`asks for a window of ${window} bytes, more than ${MAX_WINDOW_BYTES}`);
}

/** In pieces, so that what is larger than promised is noticed before it is all there. */
function unpackZstd(bytes: Uint8Array, sizeBytes: number): Uint8Array {
  expectWindow(bytes);
  const unpacked = new Uint8Array(sizeBytes);
  let at = 0;
  const stream = new ZstdStream((piece) => {
    unpacked.set(piece, at);
    at += piece.length;
  });
  stream.push(bytes, true);
  return unpacked.subarray(0, at);
}

/** The same where nothing promises a size. */
function unpackBounded(bytes: Uint8Array): Uint8Array {
  expectWindow(bytes);
  const pieces: Uint8Array[] = [];
  let total = 0;
  const stream = new ZstdStream((piece) => {
    total += piece.length;
    if (total > MAX_UNPACKED_BYTES) throw new RangeError(`unpacks to more than ${MAX_UNPACKED_BYTES} bytes`);
    // The library goes on to use what it hands out.
    pieces.push(piece.slice());
  });
  stream.push(bytes, true);
  return joinBytes(pieces);
}
