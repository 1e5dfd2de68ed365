import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { parseElf } from '../elf/reader.js';
import { Status } from './claim-verdicts.js';
import { validateElf } from './validate-file.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-mistakes-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const LETTERS = new Map<number, string>([
  [Status.unreached, '-'],
  [Status.proven, 'p'],
  [Status.assumed, 'a'],
  [Status.unknown, 'u'],
  [Status.disproved, 'x'],
]);

/** Findings that are no notes, and a letter for the verdict on each instruction's row. */
function validate(body: string) {
  const [text, object] = [join(folder, 'a.s'), join(folder, 'a.o')];
  writeFileSync(
    text,
    `.globl f\n.type f, @function\nf:\n.cfi_startproc\n${body}\n.cfi_endproc\n.size f, .-f\n` +
      '.globl g\n.type g, @function\ng:\n.cfi_startproc\nret\n.cfi_endproc\n.size g, .-g\n',
  );
  const { status, stderr } = spawnSync('as', ['-o', object, text], { encoding: 'utf8' });
  expect([status, stderr]).toEqual([0, '']);
  const { findings, sources } = validateElf(parseElf(readFileSync(object), object), { architecture: x86_64 });
  return {
    findings: findings
      .filter(({ level }) => level !== 'note')
      .map(({ code, place }) => `${code} ${place?.function}+${place?.functionOffset}`),
    verdicts: Array.from(sources[0]?.statuses ?? [], (each) => LETTERS.get(each)).join(''),
  };
}

const PROLOGUE = `
push %rbx
.cfi_def_cfa_offset 16
.cfi_offset %rbx, -16
push %rax
.cfi_def_cfa_offset 24
call g`;
const EPILOGUE = `
pop %rbx
.cfi_def_cfa_offset 8
ret`;

describe('one wrong row is one finding', () => {
  it('where the rows behind it are right again, on every way there (clang 14, behind a stack pointer that is raised early)', () => {
    expect(
      validate(`${PROLOGUE}
        add $8, %rsp
        cmp %rax, %rdi
        je 1f
        .cfi_def_cfa_offset 16
        pop %rbx
        .cfi_def_cfa_offset 8
        jmp g
      1:
        .cfi_def_cfa_offset 16 ${EPILOGUE}`),
    ).toEqual({ findings: ['cfa-mismatch f+11'], verdicts: 'ppppxxppppp' });
  });

  it('where all rows behind it are wrong by as much', () => {
    expect(
      validate(`
        push %rbx
        .cfi_def_cfa_offset 24
        .cfi_offset %rbx, -16
        push %rax
        .cfi_def_cfa_offset 32
        test %edi, %edi
        je 1f
        call g
      1:
        pop %rax
        .cfi_def_cfa_offset 24
        pop %rbx
        .cfi_def_cfa_offset 16
        ret`),
    ).toEqual({ findings: ['cfa-mismatch f+1'], verdicts: 'pxxxxxxxp' });
  });

  it('where the table is wrong by something else behind it, that is another', () => {
    expect(
      validate(`${PROLOGUE}
        pop %rax
        push %rax
        push %rax
        add $16, %rsp
        .cfi_def_cfa_offset 16 ${EPILOGUE}`),
    ).toEqual({ findings: ['cfa-mismatch f+8', 'cfa-mismatch f+10'], verdicts: 'ppppxpxppp' });
  });

  it('where the right way comes to a place behind the wrong one, or where the mistake ends', () => {
    expect(
      validate(`
        push %rbx
        .cfi_def_cfa_offset 16
        .cfi_offset %rbx, -16
        test %edi, %edi
        je 1f
        push %rax
        jmp 2f
      1:
        push %rax
        push %rax
      2:
        .cfi_def_cfa_offset 24
        pop %rax
        .cfi_def_cfa_offset 16 ${EPILOGUE}`),
    ).toEqual({ findings: ['cfa-mismatch f+6', 'cfa-mismatch f+9'], verdicts: 'ppppxpxpppp' });
    const way = (wrong: string) => `
        push %rbx
        .cfi_def_cfa_offset 16
        .cfi_offset %rbx, -16
        test %edi, %edi
        je 1f
        ${wrong}
        nop
        push %rbx
        .cfi_def_cfa_offset 24
        call g
        jmp 2f
      1:
        .cfi_def_cfa_offset 16
        push %rax
        .cfi_def_cfa_offset 24
      2:
        pop %rax
        .cfi_def_cfa_offset 16 ${EPILOGUE}`;
    expect(validate(way(''))).toEqual({ findings: [], verdicts: 'pppppppppppp' });
    const { findings, verdicts } = validate(way('push %rax'));
    expect(findings).toEqual(['cfa-mismatch f+6']);
    expect(verdicts).toBe('ppppxxxxppppp');
  });

  it('where only a jump leads to it, and the rows behind it are right (GCC, behind inline thunks)', () => {
    expect(
      validate(`${PROLOGUE}
        jmp 2f
      1:
        int3
      2:
        .cfi_def_cfa_offset 16
        nop
        add $8, %rsp
        .cfi_def_cfa_offset 16 ${EPILOGUE}`),
    ).toEqual({ findings: ['cfa-mismatch f+10'], verdicts: 'pppp-xxppp' });
  });

  it('and what falls out of a function in another frame says nothing of the next one', () => {
    expect(
      validate(`${PROLOGUE}
        xor %eax, %eax`),
    ).toEqual({ findings: ['cfa-mismatch g+0'], verdicts: 'ppppp' });
  });
});
