import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { parseElf } from '../elf/reader.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import type { KernelSymbol } from '../kernel-image/symbol-table.js';
import { sha256 } from './from-objects.js';
import { buildReplacement } from './kernel-replacement.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-replacement-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A kernel of a few functions. */
const TEXT = -0x7f00_0000;
const text = { address: TEXT, bytes: new Uint8Array(0x1000) };
const symbols: readonly Pick<KernelSymbol, 'name' | 'type' | 'address' | 'sizeBytes'>[] = [
  'old',
  'callee',
  '__SCT__might_resched',
  '__x86_indirect_thunk_rax',
  '__x86_return_thunk',
].map((name, i) => ({ name, type: 'T', address: TEXT + 0x100 * i, sizeBytes: 16 }));
const image = {
  ...{ buildId: '00'.repeat(20), release: '6.1.0', source: 'vmlinux', text },
  symbols: {
    findAll: (name: string) => symbols.filter((symbol) => symbol.name === name),
    at: (i: number) => symbols[i],
    size: symbols.length,
  },
  elf: { bytesAt: (_: number, sizeBytes: number) => new Uint8Array(sizeBytes) },
} as unknown as KernelImage;

/** The object of a function in assembly, with what `more` puts into other sections. */
function build(more: string, body = 'mov $1, %eax\n ret') {
  const path = join(folder, 'f.s');
  writeFileSync(path, `.text\n.globl old\n.type old,@function\nold: ${body}\n.size old, . - old\n${more}\n`);
  const { status, stderr } = spawnSync('as', ['-o', `${path}.o`, path], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return buildReplacement(parseElf(readFileSync(`${path}.o`), path), image, {
    ...{ name: 'f', description: '', digest: sha256, createdAt: '' },
  });
}

describe('a C file for a kernel', () => {
  it.each([
    ['.altinstructions', 'alternatives'],
    ['.parainstructions', 'paravirt'],
    ['__jump_table', 'jump labels'],
    ['__bug_table', 'BUG or WARN'],
    ['__ex_table', 'may fault'],
    ['__tracepoints', 'tracepoints'],
    ['__tracepoints_ptrs', 'tracepoints'],
    ['.data..percpu', 'per-CPU'],
    ['.init.text', 'init or exit'],
    ['.exit.text', 'init or exit'],
    ['.initcall6.init', 'init or exit'],
    ['__ksymtab', 'exported'],
    ['__param', 'parameters'],
    ['__dyndbg', 'dynamic debug'],
    ['.ctors', 'constructors'],
  ])('is refused by name with something in %s', (section, what) => {
    const table = `.section ${section},"aw"\n.long old - .\n`;
    expect(() => build(table)).toThrow(
      expect.objectContaining({ code: 'special-section', message: expect.stringContaining(what) }),
    );
    expect(() => build(table)).toThrow(section);
  });

  it.each([
    ['.static_call_sites', 'call __SCT__might_resched\n ret'],
    ['.retpoline_sites', 'call __x86_indirect_thunk_rax\n ret'],
    ['.return_sites', 'call callee\n jmp __x86_return_thunk'],
    ['.smp_locks', 'lock incl (%rdi)\n ret'],
    ['.orc_unwind', 'push %rbx\n call callee\n pop %rbx\n ret'],
    ['.orc_unwind_ip', 'push %rbx\n call callee\n pop %rbx\n ret'],
    ['__mcount_loc', 'call callee\n ret'],
  ])('needs nothing of %s: what its entry stands for is right without', (section, body) => {
    const withTable = build(`.section ${section},"a"\n.long old - .\n.long 0\n`, body);
    const [plain] = [build('', body)];
    expect(withTable.manifest.objects[0]?.functions).toEqual(plain.manifest.objects[0]?.functions);
    expect(Buffer.from(withTable.bytes).includes(section)).toBe(false);
  });
});
