import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { parseBtf } from '../../btf/parse-btf.js';
import { parseElf } from '../../elf/reader.js';
import { KernelLayout } from './kernel-layout.js';

const SOURCE = `
struct held { char a; /* 1..7 */ long b; };
struct fields { unsigned a : 3; /* 4..7 */ long b; char c; /* 17..23 */ long d; };
struct unnamed { long a; struct { char b; /* 9..15 */ long c; }; };
struct shared { long a; union { char b; long c; }; int d; int e; };
struct tail { long a; char b; };
struct nested { struct held h; int a; int b; };
struct held v1; struct fields v2; struct unnamed v3; struct shared v4; struct tail v5; struct nested v6;
`;

function layoutOf(source: string): KernelLayout {
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

it('finds padding between members, and none where a member may be written', () => {
  const layout = layoutOf(SOURCE);
  const offsets = Object.fromEntries(
    ['held', 'fields', 'unnamed', 'shared', 'tail', 'nested', 'absent'].map((name) => [
      name,
      layout.findPadding(name, 4)?.offset,
    ]),
  );
  expect(offsets).toEqual({
    held: 4,
    fields: 20,
    unnamed: 12,
    shared: undefined,
    tail: undefined,
    nested: undefined,
    absent: undefined,
  });
});
