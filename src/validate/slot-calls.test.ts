import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { parseElf } from '../elf/reader.js';
import { validateElf } from './validate-file.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-slots-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What lies behind a call that ends a function is another one, with another frame. */
const SOURCE = `
#include <stdlib.h>
__attribute__((noreturn, noinline)) void last(int n) { int x[20]; x[n] = 1; if (n > x[n & 3]) exit(n); abort(); }
__attribute__((noinline)) int with_frame(int *p) { int a[30]; for (int i = 0; i < 30; i++) a[i] = p[i] * 3; return a[p[1]]; }
void (*volatile handler)(void);
int may_return(int n) { if (n > 3) handler(); return n; }
int main(int n, char **v) { if (n == 1) last(n); return with_frame((int *)v) + may_return(n); }
`;
writeFileSync(join(folder, 'a.c'), SOURCE);

function validate(name: string, ...flags: string[]) {
  const built = spawnSync('gcc', ['-O2', '-fno-plt', ...flags, '-o', name, 'a.c'], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect([built.status, built.stderr]).toEqual([0, '']);
  return validateElf(parseElf(readFileSync(join(folder, name)), name), { architecture: x86_64 });
}

const JUMPS = `
  .globl gives_back, keeps, leaves
  .type gives_back, @function
  .type keeps, @function
  .type leaves, @function
gives_back: .cfi_startproc
  jmp *puts@GOTPCREL(%rip)
  .cfi_endproc
keeps: .cfi_startproc
  push %rax
  .cfi_def_cfa_offset 16
  jmp *puts@GOTPCREL(%rip)
  .cfi_endproc
leaves: .cfi_startproc
  push %rax
  .cfi_def_cfa_offset 16
  jmp *exit@GOTPCREL(%rip)
  .cfi_endproc
  .section .note.GNU-stack, "", @progbits
`;

describe('calls through slots that the dynamic linker fills', () => {
  it.each([
    ['an object', ['-c']],
    ['a program', []],
    ['a stripped program', ['-s']],
    ['a program whose slots are bound late', ['-Wl,-z,lazy']],
    ['a library', ['-shared', '-fPIC']],
  ])('end a function where what they call never returns: %s', (_, flags) => {
    const { findings, sources } = validate('out', ...flags);
    expect(findings.filter(({ level }) => level !== 'note')).toEqual([]);
    // The head of `.plt` is there, and nothing leads to it: its two instructions are all that is assumed.
    const assumed = findings.filter(({ code }) => code === 'row-assumed');
    expect(assumed.filter(({ place }) => place?.section !== '.plt')).toEqual([]);
    expect(sources[0]?.counts).toMatchObject({ assumed: 2 * assumed.length, unknown: 0, disproved: 0 });
  });

  it.each([
    ['an object', ['-c']],
    ['a library', ['-shared', '-fPIC']],
  ])('are judged as sibling calls where they are jumps: %s', (_, flags) => {
    writeFileSync(join(folder, 'jump.s'), JUMPS);
    const built = spawnSync('gcc', [...flags, '-o', 'jump', 'jump.s'], { cwd: folder, encoding: 'utf8' });
    expect([built.status, built.stderr]).toEqual([0, '']);
    const { findings } = validateElf(parseElf(readFileSync(join(folder, 'jump')), 'jump'), {
      architecture: x86_64,
    });
    const errors = findings.filter(({ level }) => level !== 'note');
    expect(errors.map(({ code, place }) => `${code} ${place?.function}`)).toEqual([
      'stack-not-restored keeps',
    ]);
  });

  it('are told from calls through variables, which may lead anywhere', () => {
    const { program } = validate('out');
    const names = new Set(program.slotNames.values());
    expect([names.has('abort'), names.has('exit'), names.has('handler')]).toEqual([true, true, false]);
  });
});

/** The linker writes `call 0` for a weak function that is not there; a static program of glibc has several that end functions. */
it('takes a call of nothing that ends a function for one that never returns', () => {
  const source = `
__attribute__((weak, noreturn)) void absent(int);
__attribute__((noinline)) void ends(volatile int *p) { *p = 1; absent(*p); }
__attribute__((noinline)) int begins(volatile int *p) { return *p; }
void _start(void) { int n; ends(&n); begins(&n); for (;;) ; }
`;
  writeFileSync(join(folder, 'weak.c'), source);
  const flags = ['-O2', '-static', '-nostdlib', '-fno-pie', '-no-pie', '-fno-toplevel-reorder'];
  const built = spawnSync('gcc', [...flags, '-o', 'weak', 'weak.c'], { cwd: folder, encoding: 'utf8' });
  expect([built.status, built.stderr]).toEqual([0, '']);
  const { findings } = validateElf(parseElf(readFileSync(join(folder, 'weak')), 'weak'), {
    architecture: x86_64,
  });
  expect(findings.filter(({ level }) => level !== 'note')).toEqual([]);
});
