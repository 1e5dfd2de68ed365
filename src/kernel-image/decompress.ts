import { ByteReader } from '../base/byte-reader.js';
import { decompressLz4Legacy } from './lz4.js';
import { decompressXz } from './xz.js';

/** What a kernel or module may be packed with and is not unpacked here. Each throws on damaged input. */
export interface Decompressors {
  gzip(bytes: Uint8Array): Uint8Array;
  zstd(bytes: Uint8Array): Uint8Array;
  /** A raw LZMA2 stream with its end marker. */
  lzma2(bytes: Uint8Array): Uint8Array;
}

const FORMATS = [
  { name: 'gzip', magic: [0x1f, 0x8b] },
  { name: 'xz', magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00] },
  { name: 'zstd', magic: [0x28, 0xb5, 0x2f, 0xfd] },
  { name: 'lz4', magic: [0x02, 0x21, 0x4c, 0x18] },
  { name: 'bzip2', magic: [0x42, 0x5a, 0x68] },
  { name: 'lzma', magic: [0x5d, 0x00, 0x00] },
  { name: 'lzo', magic: [0x89, 0x4c, 0x5a, 0x4f] },
] as const;

type Format = (typeof FORMATS)[number]['name'];

/** By its first bytes; undefined for anything else. */
function findFormat(bytes: Uint8Array): Format | undefined {
  return FORMATS.find(({ magic }) => magic.every((byte, i) => bytes[i] === byte))?.name;
}

/**
 * Unpacks what a kernel build packs (`vmlinuz` payloads, `.ko.xz`, `.ko.zst`, `.ko.gz`); bytes in no known format come
 * back as they are. Throws a ParseError for damaged data, and for bzip2, lzma and lzo, which no current distribution uses.
 */
export function decompress(bytes: Uint8Array, source: string, decompressors: Decompressors): Uint8Array {
  const format = findFormat(bytes);
  const fail = (problem: string) => new ByteReader(bytes, source).fail(problem);
  const guarded = (unpack: (bytes: Uint8Array) => Uint8Array): Uint8Array => {
    try {
      return unpack(bytes);
    } catch {
      return fail(`its ${format} data is damaged`);
    }
  };
  switch (format) {
    case undefined:
      return bytes;
    case 'gzip':
      return guarded(decompressors.gzip);
    case 'zstd':
      return guarded(decompressors.zstd);
    case 'lz4':
      return decompressLz4Legacy(bytes, source);
    case 'xz':
      return decompressXz(bytes, source, decompressors.lzma2);
    default:
      return fail(`packed with ${format}, which can't be read here; give an unpacked vmlinux`);
  }
}

/**
 * The vmlinux inside a `vmlinuz` (Documentation/arch/x86/boot.rst: `setup_sects`, `payload_offset`, `payload_length`).
 * Anything without the boot header is unpacked as it is, so that a vmlinux passes through.
 */
export function extractVmlinux(bytes: Uint8Array, source: string, decompressors: Decompressors): Uint8Array {
  if (bytes.length < 0x260 || String.fromCharCode(...bytes.subarray(0x202, 0x206)) !== 'HdrS')
    return decompress(bytes, source, decompressors);
  const reader = new ByteReader(bytes, source);
  const version = reader.seek(0x206).readU16();
  if (version < 0x208) reader.fail(`boot protocol ${version.toString(16)} has no payload field`);
  // 0 stands for 4, for very old boot loaders.
  const setupSectors = reader.seek(0x1f1).readU8() || 4;
  const offset = reader.seek(0x248).readU32();
  const sizeBytes = reader.readU32();
  const stored = reader.seek((setupSectors + 1) * 512 + offset).readBytes(sizeBytes);
  // The build appends the unpacked size, which gzip alone has in its own format (scripts/Makefile.lib, `size_append`).
  const payload = findFormat(stored) === 'gzip' ? stored : stored.subarray(0, -4);
  const vmlinux = decompress(payload, `${source}(payload)`, decompressors);
  if (vmlinux === payload) reader.fail('the payload is in no known format');
  return vmlinux;
}
