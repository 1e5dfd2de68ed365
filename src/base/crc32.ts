import { TABLE } from './crc32.data.js';

/** CRC-32 of IEEE 802.3 (polynomial 0x04c11db7, reflected), the one of gzip and of `.gnu_debuglink`. */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) {
    crc = (crc >>> 8) ^ (TABLE[(crc ^ (bytes[i] as number)) & 0xff] as number);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
