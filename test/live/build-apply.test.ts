import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type LiveTarget, livegraft, pause } from '../support/live.js';
import { expectPatch, makeTree, replacedBy, type TreeOptions } from '../support/source-tree.js';
import { startForTest } from '../support/test-target.js';

/** Patches that were built from source change what a running program does, and keep what it remembers. */

/** Prints `work(0)`, `work(1)`, … over and over, a line a round, for at most a minute. */
const MAIN = `#include <stdio.h>
#include <unistd.h>
const char *work(int n);
int main(void) {
  alarm(60);
  printf("ready %d\\n", getpid());
  for (int round = 0;; round++) {
    for (int n = 0; n < 8; n++) printf("%s ", work(n));
    printf("\\n");
    fflush(stdout);
    usleep(20000);
  }
}
`;

/** A line that the program prints from now on. */
async function nextLine(target: LiveTarget): Promise<string> {
  const seen = target.output().split('\n').length;
  for (let i = 0; i < 250; i++) {
    await pause(20);
    const lines = target.output().split('\n');
    // The one after the next is whole and began after the call.
    if (lines.length > seen + 2) return (lines[seen + 1] as string).trim();
  }
  throw new Error(`the program prints no more: ${target.isAlive()}`);
}

const NOINLINE = '__attribute__((noipa))';

/** What a function can need: two statics of one name, a local that counts, thread-local data, a table, texts, a constant. */
const library = (fixed: boolean) => `#include <stdio.h>
static __thread int hits = 100;
static __thread char text[64];
int shared = 7;
static ${NOINLINE} int same(int n) { return n + ${fixed ? 1000 : 1}; }
static ${NOINLINE} int next(void) { static int count; return ++count; }
int second(int n);
${fixed ? `static int calls; static ${NOINLINE} int added(int n) { static int count = 40; shared += n; return ++count; }` : ''}
const char *work(int n) {
  ${fixed ? 'calls++;' : ''}
  switch (n) {
    case 0: sprintf(text, "same=%d", same(n)); break;
    case 1: sprintf(text, "second=%d", second(n)); break;
    case 2: sprintf(text, "count=%d", next()); break;
    case 3: sprintf(text, "hits=%d", hits += ${fixed ? 10 : 1}); break;
    case 4: sprintf(text, "factor=%.2f", n * ${fixed ? 2.25 : 1.25}); break;
    case 5: return ${fixed ? '"fixed"' : '"bug"'};
    case 6: sprintf(text, "shared=%d", ${fixed ? 'added(0) + shared' : 'shared'}); break;
    default: sprintf(text, "other=%d", ${fixed ? 'calls > 0' : '-1'}); break;
  }
  return text;
}
`;
const other = (fixed: boolean) =>
  `static ${NOINLINE} int same(int n) { return n + ${fixed ? 2000 : 2}; }\nint second(int n) { return same(n); }\n`;

const FILES = { 'a.c': library(false), 'b.c': other(false), 'main.c': MAIN };
const CHANGE = { 'a.c': library(true), 'b.c': other(true) };
const LIBRARY_MAKEFILE = `prog: main.c libwork.so
\tgcc -O2 -o $@ main.c -L. -lwork -Wl,-rpath,'$$ORIGIN'
libwork.so: a.o b.o
\tgcc -shared -o $@ a.o b.o -Wl,--build-id
%.o: %.c
\tgcc -O2 -fPIC -c -o $@ $<
`;

const VARIANTS: readonly (readonly [string, TreeOptions])[] = [
  ['in a position-independent program', { files: FILES, change: CHANGE }],
  [
    'in a program at a fixed address',
    { files: FILES, change: CHANGE, cflags: '-fno-pie', ldflags: '-no-pie' },
  ],
  [
    'in a library, with general-dynamic thread-local data',
    { files: { ...FILES, Makefile: LIBRARY_MAKEFILE }, change: CHANGE, target: 'libwork.so' },
  ],
];

describe('a patch from source, in a running program', () => {
  it.each(VARIANTS)('%s', async (_, options) => {
    const tree = makeTree(options);
    const { patch, output } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['same', 'same', 'work']);
    const target = await startForTest(tree.target.replace(/[^/]*$/, 'prog'));
    const numbers = (line: string) => ({
      count: Number(/count=(\d+)/.exec(line)?.[1]),
      hits: Number(/hits=(\d+)/.exec(line)?.[1]),
    });
    const before = await nextLine(target);
    expect(before).toMatch(/^same=1 second=3 count=\d+ hits=\d+ factor=5\.00 bug shared=7 other=-1$/);

    const applied = livegraft('apply', '--pid', String(target.pid), output);
    expect(applied.stderr).toBe('');
    expect(applied.code).toBe(0);
    const after = await nextLine(target);
    expect(after).toMatch(/^same=1000 second=2001 count=\d+ hits=\d+ factor=9\.00 fixed shared=\d+ other=1$/);
    // The counter of a function that did not change, and the thread's own data, go on where they were.
    expect(numbers(after).count).toBeGreaterThan(numbers(before).count);
    expect(numbers(after).hits).toBeGreaterThan(numbers(before).hits);
    expect(Number(/shared=(\d+)/.exec(after)?.[1])).toBeGreaterThan(47);

    expect(livegraft('revert', '--pid', String(target.pid)).code).toBe(0);
    const reverted = await nextLine(target);
    expect(reverted).toMatch(/^same=1 second=3 count=\d+ hits=\d+ factor=5\.00 bug shared=7 other=-1$/);
    expect(numbers(reverted).count).toBeGreaterThan(numbers(after).count);
    expect(target.isAlive()).toBe(true);
  });

  it('with a shadow variable for each object', async () => {
    const text = (fixed: boolean) => `${fixed ? '#include <livegraft.h>' : ''}
#include <stdio.h>
static int objects[8];
const char *work(int n) {
  static char text[40];
  ${
    fixed
      ? 'int *count = livegraft_shadow_get_or_alloc(&objects[n], 1, sizeof *count, NULL, NULL); sprintf(text, "%d:%d", n, *count += n);'
      : 'sprintf(text, "%d:%d", n, objects[n]);'
  }
  return text;
}
`;
    const tree = makeTree({ files: { 'a.c': text(false), 'main.c': MAIN }, change: { 'a.c': text(true) } });
    const { output } = await expectPatch(tree);
    const target = await startForTest(tree.target);
    expect(await nextLine(target)).toMatch(/^0:0 1:0 2:0 /);
    const applied = livegraft('apply', '--pid', String(target.pid), output);
    expect(applied.stderr).toBe('');
    const [, one, two, seven] = /^0:0 1:(\d+) 2:(\d+) .* 7:(\d+)$/.exec(await nextLine(target)) ?? [];
    expect(Number(one)).toBeGreaterThan(0);
    expect([Number(two), Number(seven)]).toEqual([Number(one) * 2, Number(one) * 7]);
    expect(livegraft('revert', '--pid', String(target.pid)).code).toBe(0);
    expect(await nextLine(target)).toMatch(/^0:0 1:0 2:0 /);
  });

  it('functions shorter than a jump, down to a single ret', async () => {
    const text = (fixed: boolean) => `#include <stdio.h>
int seen; ${NOINLINE} void nothing(void) { ${fixed ? 'seen++;' : ''} }
${NOINLINE} int first(int a, int b) { ${fixed ? 'a += 100 * b;' : ''} return a; }
const char *work(int n) { static char text[40]; nothing(); sprintf(text, "%d/%d", first(n, 2), seen > 0); return text; }
`;
    const tree = makeTree({ files: { 'a.c': text(false), 'main.c': MAIN }, change: { 'a.c': text(true) } });
    const { patch, output } = await expectPatch(tree);
    const lower = `${output}.lower`;
    renameSync(output, lower);
    const sizes = patch.manifest.objects[0]?.functions.map((fn) => fn.old.sizeBytes).sort();
    expect(sizes).toEqual([1, 3]);
    const target = await startForTest(tree.target);
    expect(await nextLine(target)).toMatch(/^0\/0 1\/0 2\/0 /);
    const apply = (file: string) => livegraft('apply', '--pid', String(target.pid), file);
    const revert = () => livegraft('revert', '--pid', String(target.pid));
    expect(apply(lower)).toMatchObject({ code: 0, stderr: '' });
    expect(await nextLine(target)).toMatch(/^200\/1 201\/1 202\/1 /);
    // One above it: what was written behind the end of a function is livegraft's own.
    writeFileSync(tree.diff, readFileSync(tree.diff, 'utf8').replace('100 * b', '300 * b'));
    await expectPatch(tree);
    expect(apply(output)).toMatchObject({ code: 0, stderr: '' });
    expect(await nextLine(target)).toMatch(/^600\/1 601\/1 602\/1 /);
    expect(revert().code).toBe(0);
    expect(await nextLine(target)).toMatch(/^200\/1 201\/1 202\/1 /);
    expect(revert().code).toBe(0);
    expect(await nextLine(target)).toMatch(/^0\/1 1\/1 2\/1 /);
  });

  it('C++ methods, virtual ones, templates and the statics in them', async () => {
    const header = (fixed: boolean) => `#include <stdio.h>
struct Shape { int side; ${NOINLINE} Shape(int n) : side(n) {} virtual ${NOINLINE} int area() const { return side * ${fixed ? 'side' : '1'}; } };
template <typename T> ${NOINLINE} T tally(T value) { static T sum; return sum += value${fixed ? ' * 1000' : ''}; }
`;
    const tree = makeTree({
      files: {
        'shape.h': header(false),
        'a.cc': `#include "shape.h"
extern "C" const char *work(int n) { static char text[40]; Shape shape(n + 2); Shape *p = &shape; __asm__("" : "+r"(p)); sprintf(text, "%d/%ld", p->area(), n ? 0L : tally(1L)); return text; }`,
        'main.cc': `extern "C" {\n${MAIN.replace('const char *work', 'const char *work')}\n}`,
      },
      change: { 'shape.h': header(true) },
      cc: 'g++',
      cflags: '-fno-exceptions -fno-rtti',
    });
    const { output } = await expectPatch(tree);
    const target = await startForTest(tree.target);
    expect(await nextLine(target)).toMatch(/^2\/\d+ 3\/0 4\/0 /);
    const applied = livegraft('apply', '--pid', String(target.pid), output);
    expect(applied.stderr).toBe('');
    const after = await nextLine(target);
    expect(after).toMatch(/^4\/\d{4,} 9\/0 16\/0 /);
    // The sum went on from what it was: its last digits are those of the rounds before.
    expect(Number(/\/(\d+)/.exec(after)?.[1]) % 1000).toBeGreaterThan(0);
  });
});
