import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { LivegraftError } from '../base/errors.js';
import { parsePatch } from '../patch/file.js';
import { buildFromObjects, sha256 } from './from-objects.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-objects-'));
afterAll(() => rmSync(folder, { recursive: true }));

const text = (k: number) => `#include <stdio.h>
static __thread int hits; static int calls; static const int table[] = {3, 1, 4, 1, 5}; extern int other(int);
static __attribute__((noinline)) int helper(int n) { hits++; return n * table[n % 5]; }
struct item { int a; double b; struct item *next; } *head;
int work(int n) {
  calls++; if (head) head->a = n;
  switch (n) { case 0: return puts("zero"); case 1: return helper(n); case 2: return other(n) + ${k}; case 3: return calls; case 4: return (int)(n * 1.5); case 5: return hits; }
  return n * ${k};
}
`;

function compile(name: string, source: string, ...flags: string[]): string {
  writeFileSync(join(folder, 'a.c'), source);
  const { status, stderr } = spawnSync('gcc', ['-O2', '-g', ...flags, '-o', name, 'a.c'], {
    cwd: folder,
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(stderr);
  return join(folder, name);
}

const sections = ['-c', '-ffunction-sections', '-fdata-sections'];
const main = 'int work(int); int other(int n) { return n; } int main(int n, char **v) { return work(n); }';
const plain = compile('plain.o', text(3), '-c');
const files = {
  orig: compile('orig.o', text(3), ...sections),
  patched: compile('patched.o', text(5), ...sections),
  target: compile('target', main, plain),
};
const contents = {
  orig: readFileSync(files.orig),
  patched: readFileSync(files.patched),
  target: readFileSync(files.target),
};

function build(paths: typeof files) {
  return buildFromObjects({
    origPath: paths.orig,
    patchedPath: paths.patched,
    targetPath: paths.target,
    debugDirs: [],
    acceptedTypes: [],
    name: 'x',
    description: '',
    onEvent: () => {},
  });
}

describe('buildFromObjects', () => {
  it('makes a patch that can be read', () => {
    expect(
      parsePatch(build(files).bytes, 'x', sha256).manifest.objects[0]?.functions.map((fn) => fn.name),
    ).toEqual(['work']);
  });

  const declared = (...lines: string[]) => {
    const include = fileURLToPath(new URL('../../include', import.meta.url));
    const source = `#include <livegraft.h>\n${text(5)}\n${lines.join('\n')}\n`;
    const patched = compile('declared.o', source, ...sections, `-I${include}`);
    return parsePatch(build({ ...files, patched }).bytes, 'x', sha256).manifest;
  };

  it('takes the callbacks and states that the source declares', () => {
    const manifest = declared(
      'LIVEGRAFT_STATE(level, 7, 3); LIVEGRAFT_STATE(other_level, 8, 1);',
      'static int begin(void) { return level.previous != 0; } LIVEGRAFT_PRE_PATCH(begin);',
      'static void end(void) { level.data = 0; } LIVEGRAFT_POST_UNPATCH(end);',
    );
    expect(manifest.objects[0]?.callbacks).toEqual({ prePatch: 'begin', postUnpatch: 'end' });
    expect(manifest.states).toEqual([
      { id: 7, version: 3, symbol: 'level' },
      { id: 8, version: 1, symbol: 'other_level' },
    ]);
    expect(manifest.objects[0]?.functions.map((fn) => fn.name)).toEqual(['work']);
  });

  it.each([
    [
      'two callbacks of one kind',
      'static void f(void) {} LIVEGRAFT_POST_PATCH(f); static void (*g)(void) __attribute__((section(".livegraft.callbacks.post_patch"), used)) = f;',
    ],
    ['a callback of another file', 'void g(void); LIVEGRAFT_POST_PATCH(g);'],
    ['a state of another size', 'static long odd __attribute__((section(".livegraft.states"), used)) = 1;'],
    ['two states of one number', 'LIVEGRAFT_STATE(one, 7, 1); LIVEGRAFT_STATE(two, 7, 2);'],
  ])('refuses %s', (_, line) => {
    expect(() => declared(line)).toThrow(expect.objectContaining({ code: 'declaration-malformed' }));
  });

  it.each(['orig', 'patched', 'target'] as const)(
    'answers a damaged %s with a readable patch or one error of its own',
    (which) => {
      const original = contents[which];
      const damaged = join(folder, `damaged-${which}`);
      // Headers, tables and code alike; the debug information has a test of its own.
      const place = fc.oneof(
        fc.nat(original.length - 1),
        fc.integer({ min: Math.max(0, original.length - 4000), max: original.length - 1 }),
        fc.nat(64),
      );
      fc.assert(
        fc.property(
          fc.array(fc.tuple(place, fc.nat(255)), { minLength: 1, maxLength: 10 }),
          fc.oneof(
            { weight: 4, arbitrary: fc.constant(original.length) },
            { weight: 1, arbitrary: fc.nat(original.length) },
          ),
          (changes, length) => {
            const bytes = Uint8Array.from(original.subarray(0, length));
            for (const [at, value] of changes) if (at < length) bytes[at] = value;
            writeFileSync(damaged, bytes);
            try {
              parsePatch(build({ ...files, [which]: damaged }).bytes, 'x', sha256);
            } catch (error) {
              if (!(error instanceof LivegraftError)) throw error;
            }
          },
        ),
        { seed: 3, numRuns: 150 },
      );
    },
  );
});
