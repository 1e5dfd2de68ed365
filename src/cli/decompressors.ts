import { gunzipSync, inflateSync } from 'node:zlib';
import { lzma2 } from '@napi-rs/lzma';
import { decompress as decompressZstd, Decompress as ZstdStream } from 'fzstd';
import type { ElfReaderOptions } from '../elf/reader.js';
import type { Decompressors } from '../kernel-image/decompress.js';

/** The libraries behind packed kernels and modules. */
export const decompressors: Decompressors = {
  gzip: (bytes) => gunzipSync(bytes),
  zstd: decompressZstd,
  lzma2: (bytes) => new Uint8Array(lzma2.decompressSync(bytes)),
};

/** For compressed sections of ELF files. */
export const sectionDecompressors: ElfReaderOptions = {
  inflate: (bytes, sizeBytes) => inflateSync(bytes, { maxOutputLength: Math.max(1, sizeBytes) }),
  // Node's own zlib has zstd from version 22 on.
  zstd: unpackZstd,
};

/** In pieces, so that what is larger than promised is noticed before it is all there. */
function unpackZstd(bytes: Uint8Array, sizeBytes: number): Uint8Array {
  const unpacked = new Uint8Array(sizeBytes);
  let at = 0;
  const stream = new ZstdStream((piece) => {
    unpacked.set(piece, at);
    at += piece.length;
  });
  stream.push(bytes, true);
  return unpacked.subarray(0, at);
}
