import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { crc32 } from '../base/crc32.js';
import { SHT_PROGBITS } from '../elf/constants.js';
import { parseElf } from '../elf/reader.js';
import { writeRelocatable } from '../elf/writer.js';
import { findDebugFile } from './debug-files.js';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'livegraft-debug-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** An object that names a separate debug file, as `objcopy --add-gnu-debuglink` writes it. */
function linked(name: string, checksum: number) {
  const text = new TextEncoder().encode(name);
  const data = new Uint8Array(Math.ceil((text.length + 1) / 4) * 4 + 4);
  data.set(text);
  new DataView(data.buffer).setUint32(data.length - 4, checksum, true);
  const sections = [{ name: '.gnu_debuglink', type: SHT_PROGBITS, flags: 0, data, alignment: 4 }];
  return parseElf(writeRelocatable({ machine: 62, sections, symbols: [], relocations: [] }), 'linked');
}

it('finds a file by its name and checksum, beside the program or in .debug', () => {
  const debug = writeRelocatable({ machine: 62, sections: [], symbols: [], relocations: [] });
  mkdirSync(join(folder, '.debug'));
  writeFileSync(join(folder, '.debug', 'a.debug'), debug);
  const path = join(folder, 'a');
  expect(findDebugFile(linked('a.debug', crc32(debug)), path, [])?.source).toBe(
    join(folder, '.debug/a.debug'),
  );
  expect(findDebugFile(linked('a.debug', crc32(debug) ^ 1), path, [])).toBeUndefined();
  // Folders in the name count for nothing (GDB manual, "Separate Debug Files").
  expect(findDebugFile(linked('/other/a.debug', crc32(debug)), path, [])?.source).toContain('.debug/a.debug');
  expect(readFileSync(join(folder, '.debug/a.debug')).length).toBe(debug.length);
});

it('reads no device and no pipe, which may never end', () => {
  symlinkSync('/dev/zero', join(folder, 'endless'));
  expect(spawnSync('mkfifo', [join(folder, 'pipe')]).status).toBe(0);
  const path = join(folder, 'b');
  for (const name of ['endless', 'pipe', '../../../../../../../dev/zero', '', '.', '..'])
    expect(findDebugFile(linked(name, 0), path, [])).toBeUndefined();
});
