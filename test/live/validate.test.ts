import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { jsonLineSchema } from '../../src/cli/json-schema.js';
import { livegraft, ROOT } from '../support/live.js';
import { startForTest } from '../support/test-target.js';

/** The command line of `validate`, and what a kept proof does to a walk. */

const folder = mkdtempSync(join(tmpdir(), 'livegraft-validate-'));
// Proofs are kept here, not in the user's folder.
process.env.XDG_CACHE_HOME = folder;
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function assemble(name: string): string {
  const object = join(folder, `${name}.o`);
  const source = join(ROOT, 'test/corpus/validate', `${name}.s`);
  expect(spawnSync('as', ['-o', object, source]).status).toBe(0);
  return object;
}

describe('livegraft validate', () => {
  it('says by its exit code whether files are clean, have findings, or can’t be read', () => {
    const [good, bad, none] = [
      assemble('cfa-mismatch.good'),
      assemble('cfa-mismatch.bad'),
      join(folder, 'none'),
    ];
    writeFileSync(none, 'this is no ELF file, but long enough to have a header of its own '.repeat(3));
    expect(livegraft('validate', good).code).toBe(0);
    const found = livegraft('validate', good, bad);
    expect(found.code).toBe(1);
    expect(found.stdout).toContain('error cfa-mismatch');
    expect(found.stdout).toContain('what to do:');
    const unread = livegraft('validate', good, none);
    expect([unread.code, unread.stderr]).toEqual([2, expect.stringContaining('no ELF file')]);
    expect(livegraft('validate', '--agree', 'dwarf,nothing', good).code).toBe(2);
    // Nothing is stored of it, and nothing is to be read of it.
    truncateSync(none, 2 ** 31 - 1);
    const disk = livegraft('validate', none);
    expect([disk.code, disk.stderr]).toEqual([2, expect.stringContaining('more than any packed kernel')]);
  });

  it('prints JSON lines that the schema knows, and SARIF', () => {
    const bad = assemble('saved-register-mismatch.bad');
    const sarif = join(folder, 'out.sarif');
    const { code, lines } = livegraft('--json', 'validate', '--sarif', sarif, bad);
    expect(code).toBe(1);
    for (const line of lines) jsonLineSchema.parse(line);
    expect(lines.map((line) => line.event)).toEqual(['validated', 'validateSummary']);
    const log = JSON.parse(readFileSync(sarif, 'utf8'));
    expect(log.version).toBe('2.1.0');
    const [run] = log.runs;
    const [result] = run.results;
    expect(run.tool.driver.rules[result.ruleIndex].id).toBe(result.ruleId);
    expect(result).toMatchObject({ ruleId: 'saved-register-mismatch', level: 'error' });
    expect(result.locations[0].logicalLocations[0].fullyQualifiedName).toBe('f');
    expect(result.locations[0].physicalLocation.artifactLocation.uri).toBe(`file://${bad}`);
  });

  it('writes a SARIF log alone to the standard output', () => {
    const bad = assemble('cfa-mismatch.bad');
    const { code, stdout } = livegraft('validate', '--sarif', '-', bad, assemble('cfa-mismatch.good'));
    expect([code, JSON.parse(stdout).runs[0].results.length]).toEqual([1, 1]);
    expect(livegraft('--json', 'validate', '--sarif', '-', bad).stdout).toContain('two-outputs');
  });

  it('draws progress and colours on a terminal only, whatever the other output goes to', () => {
    const [large, out, err] = ['large', 'out', 'err'].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    // Large enough for a bar, and read at once.
    writeFileSync(large, new Uint8Array(2 ** 21));
    const files = `${large} ${assemble('cfa-mismatch.bad')}`;
    const command = `${process.execPath} ${join(ROOT, 'bin/livegraft.js')} validate --no-keep ${files}`;
    // A run on a terminal of its own, as util-linux's script makes one.
    const onTerminal = (redirect: string) =>
      spawnSync('script', ['-qec', `${command} ${redirect}`, '/dev/null'], {
        encoding: 'utf8',
        env: { ...process.env, NO_COLOR: '' },
      }).stdout;
    const shown = onTerminal(`> ${out}`);
    expect(shown).toContain('100 % 2/2 cfa-mismatch');
    expect(shown).toContain('\x1b[31munreadable:');
    expect(onTerminal(`2> ${err}`)).toContain('\x1b[31merror cfa-mismatch');
    for (const [file, text] of [
      [out, 'error cfa-mismatch'],
      [err, 'unreadable:'],
    ] as const) {
      expect(readFileSync(file, 'utf8')).toContain(text);
      expect(readFileSync(file, 'utf8')).not.toContain('\x1b');
    }
  });

  it('finds the same where proofs can’t be kept, and says so', () => {
    const [object, library] = [assemble('cfa-mismatch.bad'), join(folder, 'unkept.so')];
    expect(spawnSync('gcc', ['-shared', '-nostdlib', '-Wl,--build-id', '-o', library, object]).status).toBe(
      0,
    );
    const cache = process.env.XDG_CACHE_HOME;
    process.env.XDG_CACHE_HOME = '/dev/null/no-folder';
    try {
      const { code, stdout, stderr } = livegraft('validate', library);
      expect([code, stdout]).toEqual([1, expect.stringContaining('error cfa-mismatch')]);
      expect(stderr).toContain('the proof is not kept:');
      expect(livegraft('--json', 'validate', library).lines[0]).toMatchObject({ proof: 'not-kept' });
    } finally {
      process.env.XDG_CACHE_HOME = cache;
    }
  });

  it('says in which line of the source', () => {
    const source = join(ROOT, 'test/corpus/validate/cfa-mismatch.bad.s');
    const line =
      1 +
      readFileSync(source, 'utf8')
        .split('\n')
        .findIndex((text) => text.includes('push'));
    const build = (command: string, ...args: string[]) =>
      expect(spawnSync(command, args, { cwd: folder, encoding: 'utf8' })).toMatchObject({
        status: 0,
        stderr: '',
      });
    build('as', '-g', '-o', 'lines.o', source);
    // The same in a library, and in one whose lines are in a file of their own.
    build('gcc', '-shared', '-nostdlib', '-Wl,--build-id', '-o', 'lines.so', 'lines.o');
    build('objcopy', '--only-keep-debug', 'lines.so', 'lines.debug');
    build('objcopy', '--strip-debug', '--add-gnu-debuglink=lines.debug', 'lines.so', 'bare.so');
    const sarif = join(folder, 'lines.sarif');
    for (const file of ['lines.o', 'lines.so', 'bare.so']) {
      const { lines } = livegraft('--json', 'validate', '--sarif', sarif, join(folder, file));
      for (const each of lines) jsonLineSchema.parse(each);
      const [finding] = (lines[0]?.findings ?? []) as {
        from: { file: string; line: number };
        place: { line: number };
      }[];
      expect([file, finding?.from.file, finding?.from.line]).toEqual([file, source, line]);
      expect(livegraft('validate', join(folder, file)).stdout).toContain(`${source}:${finding?.place.line}`);
      const [result] = JSON.parse(readFileSync(sarif, 'utf8')).runs[0].results;
      expect(result.relatedLocations[0].physicalLocation).toMatchObject({
        artifactLocation: { uri: `file://${source}` },
        region: { startLine: line },
      });
    }
  });

  it('leaves out what is suppressed, and names a line that it can’t read', () => {
    const bad = assemble('cfa-mismatch.bad');
    const list = join(folder, 'list');
    writeFileSync(list, '# known\ncfa-* f # assembly\n');
    expect(livegraft('validate', '--suppress', list, bad).code).toBe(0);
    writeFileSync(list, 'cfa-mismatch g\n');
    expect(livegraft('validate', '--suppress', list, bad).code).toBe(1);
    for (const code of ['no-such-code', 'no-*', 'cfa-?ismatch']) {
      writeFileSync(list, `\n${code} f\n`);
      const { code: exit, stderr } = livegraft('validate', '--suppress', list, bad);
      expect([exit, stderr]).toEqual([2, expect.stringContaining('line 2')]);
    }
  });
});

const PROGRAM = `
#include <stdio.h>
#include <unistd.h>
int wait_here(void);
int inner(void) { pause(); return 0; }
int main(void) { printf("ready %d\\n", getpid()); fflush(stdout); return wait_here(); }
`;
/** Calls from a frame of 32 bytes that its row takes for 16. */
const WRONG = `
  .text
  .globl wait_here
  .type wait_here, @function
wait_here:
  .cfi_startproc
  sub $24, %rsp
  .cfi_def_cfa_offset 16
  call inner
  add $24, %rsp
  .cfi_def_cfa_offset 8
  ret
  .cfi_endproc
  .size wait_here, .-wait_here
  .section .note.GNU-stack, "", @progbits
`;

it('keeps a proof by build-id, and a walk refuses a row that it disproves', async () => {
  const [c, s, program] = ['p.c', 'w.s', 'program'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  writeFileSync(c, PROGRAM);
  writeFileSync(s, WRONG);
  const built = spawnSync('gcc', ['-O2', '-Wl,--build-id', '-o', program, c, s], { encoding: 'utf8' });
  expect([built.status, built.stderr]).toEqual([0, '']);
  const target = await startForTest(program);
  const look = () => {
    const { lines } = livegraft('--json', 'stack', '--pid', String(target.pid));
    const stack = lines.find((line) => line.event === 'stack') as {
      tasks: { reliable: boolean; reason: { code: string } | null }[];
    };
    return stack.tasks[0];
  };
  // Without a proof the wrong row leads to a place that happens to be no return address.
  expect(look()?.reason?.code).not.toBe('row-disproved');
  expect(livegraft('validate', program).code).toBe(1);
  expect(readdirSync(join(folder, 'livegraft/proofs')).length).toBeGreaterThan(0);
  expect(look()).toMatchObject({ reliable: false, reason: { code: 'row-disproved' } });
});
