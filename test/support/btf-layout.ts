import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseBtf } from '../../src/btf/parse-btf.js';
import { parseElf } from '../../src/elf/reader.js';
import { KernelLayout } from '../../src/targets/kernel/kernel-layout.js';

/** The layout of the structures in a C text, from the type information that the compiler writes. */
export function layoutOf(source: string): KernelLayout {
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-layout-'));
  try {
    const [c, o] = [join(folder, 'types.c'), join(folder, 'types.o')];
    writeFileSync(c, source);
    const { status, stderr } = spawnSync('gcc', ['-gbtf', '-c', '-o', o, c], { encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
    const section = parseElf(readFileSync(o), 'types.o').findSection('.BTF');
    if (section === undefined) throw new Error('the compiler wrote no .BTF');
    return new KernelLayout(parseBtf(section.data, 'types.o'), 'types.o');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
