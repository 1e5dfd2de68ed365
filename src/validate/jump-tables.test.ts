import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { FlowCode } from '../arch/instruction-table.js';
import { x86_64 } from '../arch/x86-64/index.js';
import { parseLsda } from '../dwarf/lsda.js';
import { parseElf } from '../elf/reader.js';
import { Status } from './claim-verdicts.js';
import { validateElf } from './validate-file.js';

/** Compilers' jump tables and landing pads: nothing behind them may be left on trust. */

const CORPUS = fileURLToPath(new URL('../../test/corpus/validate', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'livegraft-tables-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function run(command: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return stdout;
}

const cases = Array.from({ length: 12 }, (_, i) => `case ${i}: return g(a[${i}]) * ${i + 3};`).join('\n');
const SWITCH = `
int g(int);
int choose(int which, int *a) { switch (which) { ${cases} default: return -1; } }
int small(unsigned char which, int *a) { int r = g(1); switch (which & 7) { ${cases} default: r++; } return r; }
int main(int count, char **arguments) { int a[12] = {count}; return choose(count, a) + small(count, a); }
int __attribute__((noinline)) g(int x) { __asm__ volatile("" : "+r"(x)); return x; }
`;

function validate(path: string) {
  const result = validateElf(parseElf(readFileSync(path), path), {
    architecture: x86_64,
    sources: ['dwarf'],
  });
  const source = result.sources[0];
  if (source === undefined) throw new Error('no claims');
  return { result, counts: source.counts, statuses: source.statuses };
}

describe('jump tables', () => {
  it.each([
    ['an object', '-c -fPIC', 2],
    ['an object that is not position-independent', '-c -fno-pic', 2],
    ['a position-independent program', '-fPIE -pie', 2],
    ['a program at a fixed address', '-fno-pic -no-pie', 2],
    ['with branch tracking', '-c -fPIC -fcf-protection=full', 2],
    [
      'with retpolines',
      '-c -fno-pic -mcmodel=kernel -mindirect-branch=thunk-extern -fcf-protection=none -fjump-tables',
      2,
    ],
    ['code without them', '-c -fPIC -fno-jump-tables', 0],
  ])('%s', (name, flags, tables) => {
    writeFileSync(join(folder, 'switch.c'), SWITCH);
    const path = join(folder, name.replaceAll(' ', '-'));
    run('gcc', '-O2', '-fno-inline', ...flags.split(' '), '-o', path, 'switch.c');
    const { result, counts, statuses } = validate(path);
    const { table } = result.program;
    const inside = (i: number) =>
      ['choose', 'small'].includes(result.program.functionAt(table.offsets[i] as number)?.name ?? '');
    let jumps = 0;
    for (let i = 0; i < table.count; i++) {
      if (!inside(i)) continue;
      if (table.flows[i] === FlowCode.indirectJump) jumps++;
      expect([i, statuses[i]]).not.toEqual([i, Status.assumed]);
    }
    expect(jumps).toBe(tables);
    expect(result.findings.filter((f) => f.level !== 'note')).toEqual([]);
    expect(counts.proven).toBeGreaterThan(50);
  });
});

const CATCHING = `
#include <string>
#include <vector>
int risky(int);
struct Guard { int *p; Guard(int *q) : p(q) { ++*p; } ~Guard() { --*p; } };
int outer(int n, std::vector<std::string> &all) {
  int held = 0;
  try {
    Guard guard(&held);
    for (int i = 0; i < n; i++) all.push_back(std::string(static_cast<size_t>(risky(i)), 'x'));
    return risky(n);
  } catch (const std::exception &) { return held + risky(1); } catch (int code) { return code; }
}
`;

describe('landing pads', () => {
  it('are read as the assembler wrote them, and proven from the calls', () => {
    writeFileSync(join(folder, 'catching.cc'), CATCHING);
    run('g++', '-O2', '-S', '-o', 'catching.s', 'catching.cc');
    run('as', '-L', '-o', 'catching.o', 'catching.s');
    const labels = new Map(
      run('nm', 'catching.o')
        .split('\n')
        .map((line) => [line.split(' ')[2], Number.parseInt(line.slice(0, 16), 16)]),
    );
    const text = readFileSync(join(folder, 'catching.s'), 'utf8');
    // .uleb128 .LEHB0-.LFB1988, .LEHE0-.LEHB0, .L5-.LFB1988 or 0: the entries of the first function's table.
    const [first = ''] = /^\.LLSDACSB\d+:[\s\S]*?^\.LLSDACSE\d+:/m.exec(text) ?? [];
    const value = (expression: string) => {
      const [a, b] = expression.split('-');
      return b === undefined ? Number(a) : (labels.get(a) as number) - (labels.get(b) as number);
    };
    const words = [...first.matchAll(/\.uleb128 (\S+)/g)].map((match) => value(match[1] as string));
    const expected = Array.from({ length: words.length / 4 }, (_, i) => ({
      start: words[4 * i],
      end: (words[4 * i] as number) + (words[4 * i + 1] as number),
      landingPad: words[4 * i + 2] === 0 ? undefined : words[4 * i + 2],
    }));
    expect(expected.length).toBeGreaterThan(2);
    const path = join(folder, 'catching.o');
    const section = parseElf(readFileSync(path), path).findSection('.gcc_except_table');
    const lsda = parseLsda(section?.data ?? new Uint8Array(), 0, 0, path);
    expect(lsda.callSites).toEqual(expected);

    run('g++', '-O2', '-shared', '-fPIC', '-o', 'catching.so', 'catching.cc');
    run('g++', '-O2', '-c', '-ffunction-sections', '-o', 'sections.o', 'catching.cc');
    for (const file of ['catching.o', 'catching.so', 'sections.o']) {
      const { counts, result } = validate(join(folder, file));
      expect([file, counts.assumed, counts.proven > 150]).toEqual([file, 0, true]);
      expect(result.findings.filter((f) => f.level !== 'note')).toEqual([]);
    }
  });

  it('have the stack pointer that a real unwinder gives them, arguments on the stack included', () => {
    // The landing pad keeps how far its stack pointer lies above where it was behind the pushes.
    writeFileSync(
      join(folder, 'pad.s'),
      readFileSync(join(CORPUS, 'landing-pad.good.s'), 'utf8')
        .replace(/(\tpush %rax\n[\s\S]*?escape 0x2e, 16\n)/, '$1\tmov %rsp, %rbx\n')
        .replace(
          '.Lpad:\n\tjmp .Lout',
          '.Lpad:\n\tmov %rsp, %rdx\n\tsub %rbx, %rdx\n\tmov %rdx, moved(%rip)\n\tmov %rax, %rdi\n\n.Lresume:\n\tcall _Unwind_Resume@PLT\n.Lresumed:',
        )
        // The personality ends a program that throws where no entry allows it.
        .replace(/^\.Ltable_end:/m, '\t.uleb128 .Lresume - f, .Lresumed - .Lresume, 0, 0\n.Ltable_end:')
        .replace('call g\n', 'call thrower@PLT\n')
        .replace(/personality:\n\t.quad 0/, '.comm moved, 8\npersonality:\n\t.quad __gxx_personality_v0') +
        '\t.section .note.GNU-stack, "", @progbits\n',
    );
    writeFileSync(
      join(folder, 'thrower.cc'),
      `#include <cstdio>
      extern "C" { void f(); void g(); extern long moved; void thrower() { throw 7; } }
      int main() { try { f(); } catch (int code) { std::printf("%d %ld", code, moved); } }`,
    );
    run('g++', '-O1', '-o', 'thrower', 'thrower.cc', 'pad.s');
    expect(run('./thrower')).toBe('7 16');
  });
});
