import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { decompressors } from '../cli/decompressors.js';
import { decompress, extractVmlinux } from './decompress.js';
import { decompressLz4Legacy } from './lz4.js';
import { decompressXz } from './xz.js';

/** Real code, so that the x86 filter has something to do. */
const CODE = new Uint8Array(readFileSync('/usr/lib/x86_64-linux-gnu/libc.so.6')).slice(200_000, 700_000);

function pack(command: string, ...args: string[]): Uint8Array {
  const { status, stdout, stderr } = spawnSync(command, args, { input: CODE, maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error(`${command}: ${stderr}`);
  return new Uint8Array(stdout);
}

/** As the kernel's build does: the uncompressed size follows the data. */
function withSize(packed: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(packed.length + 4);
  bytes.set(packed);
  new DataView(bytes.buffer).setUint32(packed.length, CODE.length, true);
  return bytes;
}

const FORMATS: readonly [string, string, ...string[]][] = [
  ['gzip', 'gzip', '-9'],
  ['xz with the x86 filter', 'xz', '--check=crc32', '--x86', '--lzma2=dict=32MiB'],
  ['xz in several blocks', 'xz', '--check=crc32', '--x86', '--lzma2=dict=1MiB', '--block-size=200000'],
  ['xz of a module', 'xz', '--check=crc32', '--lzma2=dict=1MiB'],
  ['zstd', 'zstd', '-q', '-19', '-c'],
  ['lz4', 'lz4', '-l', '-9', '-c'],
];

describe('decompress', () => {
  it.each(FORMATS)('unpacks %s', (_, command, ...args) => {
    const unpacked = decompress(pack(command, ...args), 'packed', decompressors);
    expect(Buffer.compare(unpacked, CODE)).toBe(0);
  });

  it.each(FORMATS)('finds the payload of a boot image packed with %s', (name, command, ...args) => {
    const alone = pack(command, ...args);
    const packed = name === 'gzip' ? alone : withSize(alone);
    const image = new Uint8Array(0x8000 + packed.length);
    const view = new DataView(image.buffer);
    image[0x1f1] = 0x1f;
    image.set(new TextEncoder().encode('HdrS'), 0x202);
    view.setUint16(0x206, 0x20f, true);
    view.setUint32(0x248, 0x8000 - 0x4000, true);
    view.setUint32(0x24c, packed.length, true);
    image.set(packed, 0x8000);
    expect(Buffer.compare(extractVmlinux(image, 'vmlinuz', decompressors), CODE)).toBe(0);
    image.fill(0, 0x8000);
    expect(() => extractVmlinux(image, 'vmlinuz', decompressors)).toThrow('in no known format');
  });

  it('refuses what unpacks to too much, before it has unpacked it all', () => {
    const lz4 = pack('lz4', '-l', '-9', '-c');
    expect(() => decompressLz4Legacy(lz4, 'bomb', CODE.length - 1)).toThrow(
      'unpacks to more than 499999 bytes',
    );
    expect(decompressLz4Legacy(lz4, 'kernel', CODE.length)).toHaveLength(CODE.length);
    const xz = pack('xz', '--check=crc32', '--block-size=200000');
    const never = () => expect.unreachable('the blocks say how long they are');
    expect(() => decompressXz(xz, 'bomb', never, 199_999)).toThrow('unpacks to more than 199999 bytes');
    expect(decompressXz(xz, 'kernel', decompressors.lzma2, CODE.length)).toHaveLength(CODE.length);
  });

  it('refuses what it can not read by name', () => {
    expect(() => decompress(pack('xz', '--format=lzma'), 'old', decompressors)).toThrow('packed with lzma');
  });
});
