import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { inflateSync } from 'node:zlib';
import { ByteReader } from '../base/byte-reader.js';
import { crc32 } from '../base/crc32.js';
import type { ElfFile } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';

/** Where distributions install separate debug files. */
const DEBUG_ROOT = '/usr/lib/debug';

/**
 * The separate debug file of a stripped one: by build-id, then by `.gnu_debuglink` with its checksum (GDB manual,
 * "Separate Debug Files"), under `debugDirs` and the system's own folder. Undefined when there is none that fits.
 */
export function findDebugFile(elf: ElfFile, path: string, debugDirs: readonly string[]): ElfFile | undefined {
  const roots = [...debugDirs, DEBUG_ROOT];
  const parse = (bytes: Uint8Array, file: string) =>
    parseElf(bytes, file, {
      inflate: (bytes, sizeBytes) => inflateSync(bytes, { maxOutputLength: Math.max(1, sizeBytes) }),
    });
  if (elf.buildId !== undefined) {
    const name = join('.build-id', elf.buildId.slice(0, 2), `${elf.buildId.slice(2)}.debug`);
    for (const file of roots.map((root) => join(root, name))) {
      const found = readIfThere(file);
      const parsed = found && parse(found, file);
      if (parsed?.buildId === elf.buildId) return parsed;
    }
  }
  const link = elf.findSection('.gnu_debuglink');
  if (link === undefined) return undefined;
  const reader = new ByteReader(link.data, `${path}(.gnu_debuglink)`);
  // Without the folders of whoever made it, and not led elsewhere by them.
  const name = basename(reader.readCString());
  reader.seek(Math.ceil(reader.offset / 4) * 4);
  const checksum = reader.readU32();
  const folder = dirname(resolve(path));
  const places = [
    join(folder, name),
    join(folder, '.debug', name),
    ...roots.flatMap((root) => [join(root, folder, name), join(root, name)]),
  ];
  for (const file of places) {
    const found = readIfThere(file);
    if (found !== undefined && crc32(found) === checksum) return parse(found, file);
  }
  return undefined;
}

/** Of files only: a device or a pipe may never end, and opening a pipe may wait for ever. */
function readIfThere(path: string): Uint8Array | undefined {
  try {
    const descriptor = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      return fstatSync(descriptor).isFile() ? readFileSync(descriptor) : undefined;
    } finally {
      closeSync(descriptor);
    }
  } catch {
    return undefined;
  }
}
