import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { FlowCode } from '../arch/instruction-table.js';
import { x86_64 } from '../arch/x86-64/index.js';
import { parseElf } from '../elf/reader.js';
import { validateElf } from './validate-file.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-far-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SOURCE = `
#include <stdlib.h>
#include <stdio.h>
__attribute__((noreturn, noinline)) void last(int n) { int x[20]; x[n] = 1; if (n > x[n & 3]) exit(n); abort(); }
__attribute__((noinline)) int work(int *p) { int a[30]; for (int i = 0; i < 30; i++) a[i] = p[i] * 3; return a[p[1]]; }
int (*handler)(int *);
int by_pointer(int *p) { return handler(p) + 1; }
int sibling(int *p) { p[0] = 1; return work(p); }
int main(int n, char **v) { if (n == 1) last(n); if (n == 9) puts("nine"); return sibling((int *)v) + by_pointer((int *)v); }
`;
writeFileSync(join(folder, 'a.c'), SOURCE);

/** What is called and jumped to through registers, by name; and the findings. */
function validate(...flags: string[]) {
  const built = spawnSync('gcc', ['-mcmodel=large', ...flags, '-o', 'out', 'a.c'], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect([built.status, built.stderr]).toEqual([0, '']);
  const { program, findings } = validateElf(parseElf(readFileSync(join(folder, 'out')), 'out'), {
    architecture: x86_64,
  });
  const { flows, targets, lengths, transfers, transferCount } = program.table;
  const names = new Set<string | undefined>();
  for (let t = 0; t < transferCount; t++) {
    const i = transfers[t] as number;
    // A direct call is longer.
    if (flows[i] === FlowCode.call && (lengths[i] as number) < 5)
      names.add(program.nameOfTarget(targets[i] as number));
  }
  return { names, findings: findings.filter(({ level }) => level !== 'note') };
}

describe('calls through a constant in a register', () => {
  it.each(
    ['-O0', '-O2', '-Os'].flatMap(
      (optimise) =>
        [
          ['an object', optimise, ['-c', '-fno-pie']],
          ['a position-independent object', optimise, ['-c', '-fPIE']],
          ['a program', optimise, ['-fno-pie', '-no-pie']],
          ['a position-independent program', optimise, ['-fPIE', '-pie']],
        ] as const,
    ),
  )('are calls of what lies there: %s, %s', (_, optimise, flags) => {
    const { names, findings } = validate(optimise, ...flags);
    expect(findings).toEqual([]);
    for (const name of ['last', 'exit', 'abort', 'puts']) expect(names).toContain(name);
    expect(names).not.toContain('handler');
  });
});
