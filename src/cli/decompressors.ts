import { gunzipSync } from 'node:zlib';
import { lzma2 } from '@napi-rs/lzma';
import { decompress as decompressZstd } from 'fzstd';
import type { Decompressors } from '../kernel-image/decompress.js';

/** The libraries behind packed kernels and modules. */
export const decompressors: Decompressors = {
  gzip: (bytes) => gunzipSync(bytes),
  zstd: decompressZstd,
  lzma2: (bytes) => new Uint8Array(lzma2.decompressSync(bytes)),
};
