import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { inflateSync } from 'node:zlib';
import { ByteReader } from '../base/byte-reader.js';
import { crc32 } from '../base/crc32.js';
import type { ElfFile } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';

const DEBUG_ROOT = '/usr/lib/debug';

/**
 * The separate debug file of a stripped one: by build-id, then by `.gnu_debuglink` with its checksum (GDB manual,
 * "Separate Debug Files"). Undefined when none is installed.
 */
export function findDebugFile(elf: ElfFile, path: string): ElfFile | undefined {
  if (elf.buildId !== undefined) {
    const file = join(DEBUG_ROOT, '.build-id', elf.buildId.slice(0, 2), `${elf.buildId.slice(2)}.debug`);
    const found = readIfThere(file);
    const parsed = found && parseElf(found, file, { inflate: (data) => inflateSync(data) });
    if (parsed?.buildId === elf.buildId) return parsed;
  }
  const link = elf.findSection('.gnu_debuglink');
  if (link === undefined) return undefined;
  const reader = new ByteReader(link.data, `${path}(.gnu_debuglink)`);
  const name = reader.readCString();
  reader.seek(Math.ceil(reader.offset / 4) * 4);
  const checksum = reader.readU32();
  const folder = dirname(path);
  for (const file of [join(folder, name), join(folder, '.debug', name), join(DEBUG_ROOT, folder, name)]) {
    const found = readIfThere(file);
    if (found !== undefined && crc32(found) === checksum) {
      return parseElf(found, file, { inflate: (data) => inflateSync(data) });
    }
  }
  return undefined;
}

function readIfThere(path: string): Uint8Array | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}
