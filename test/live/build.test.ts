import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  addressesOf,
  buildPatch,
  cli,
  expectPatch,
  makeTree,
  replacedBy,
  run,
  type Tree,
  type TreeOptions,
} from '../support/source-tree.js';

const MAIN = 'int work(int n);\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n';
/** One file with `work`, called by a `main` in another. */
const one = (before: string, after: string, more: Partial<TreeOptions> = {}): TreeOptions => ({
  files: { 'a.c': before, 'main.c': MAIN },
  change: { 'a.c': after },
  ...more,
});
const replacedIn = async (tree: Tree, ...more: string[]) =>
  replacedBy((await expectPatch(tree, ...more)).patch);
const NOINLINE = '__attribute__((noinline))';

describe('what changes', () => {
  it('a function', async () => {
    const tree = makeTree(one('int work(int n) { return n + 1; }', 'int work(int n) { return n * 3; }'));
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['work']);
    const [fn] = patch.manifest.objects[0]?.functions ?? [];
    expect(fn?.old.address).toBe(addressesOf(tree.target, 'work')[0]);
    expect(fn?.sympos).toBe(0);
    expect(patch.manifest.notes).toContain("a.c: 1 function of the unpatched build is the target's");
  });

  it.each([
    ['the first', 'a.c', [0]],
    ['the second', 'b.c', [1]],
    ['both', 'a.c b.c', [0, 1]],
  ])('%s of two static functions of one name', async (_, which, places) => {
    const file = (name: string, add: number) =>
      `static ${NOINLINE} int same(int n) { return n * 7 + ${add}; }\nint ${name}(int n) { return same(n) - same(n + 2); }`;
    const tree = makeTree({
      files: {
        'a.c': file('first', 1),
        'b.c': file('second', 2),
        'main.c':
          'int first(int), second(int); int main(int n, char **v) { (void)v; return first(n) + second(n); }',
      },
      change: Object.fromEntries(which.split(' ').map((f) => [f, file(f === 'a.c' ? 'first' : 'second', 9)])),
    });
    const { patch } = await expectPatch(tree);
    const addresses = addressesOf(tree.target, 'same');
    expect(addresses).toHaveLength(2);
    const functions = patch.manifest.objects[0]?.functions ?? [];
    expect(functions.map((fn) => fn.old.address).sort()).toEqual(places.map((i) => addresses[i]));
    expect(functions.map((fn) => fn.sympos).sort()).toEqual(places.map((i) => i + 1));
    // Each new version has a symbol of its own.
    expect(new Set(functions.map((fn) => fn.newSymbol)).size).toBe(places.length);
    const defined = patch.symbols.flatMap((s) => (s.kind === 'defined' && s.isFunction ? [s.name] : []));
    expect(new Set(defined).size).toBe(defined.length);
  });

  it('with new functions, data, static locals, strings and a jump table', async () => {
    const before = 'int work(int n) { return n; }';
    const after = `#include <stdio.h>
static int calls; static int limits[] = {4, 5, 6}; void reset(int n) { limits[n] = n; } static const double factor = 1.5;
static ${NOINLINE} int added(int n) { static int times; puts("added"); return ++times + limits[n & 1]; }
int work(int n) {
  calls++;
  switch (n) { case 0: return added(n); case 1: return puts("one"); case 2: return n * 40; case 3: return calls;
    case 4: return puts("four"); case 5: return (int)(n * factor); case 6: return 77; default: return n; }
}`;
    const { patch } = await expectPatch(makeTree(one(before, after)));
    expect(replacedBy(patch)).toEqual(['work']);
    expect(patch.manifest.newFunctions).toEqual([expect.stringMatching(/^added(\.|$)/)]);
    expect(patch.manifest.newData.map((d) => d.name.replace(/\.\d+$/, '')).sort()).toEqual([
      'calls',
      'limits',
      'times',
    ]);
    const tables = patch.sections.filter((s) => s.name.startsWith('.rodata.work'));
    expect(tables.flatMap((s) => s.relocations).length).toBeGreaterThanOrEqual(7);
  });

  it('a function with two jump tables, one behind the other', async () => {
    const cases = (from: number, k: number) =>
      Array.from(
        { length: 8 },
        (_, i) => `case ${from + i}: out(${i * k}); return out(${i + from}) ${'+-^*|&'[i % 6]} ${i + k};`,
      );
    const text = (k: number) =>
      `int out(int n) { return n; }\nint work(int n) { switch (n) { ${cases(0, 3).join(' ')} } out(n); switch (n * 3) { ${cases(20, k).join(' ')} } return 0; }`;
    const tree = makeTree(one(text(7), text(8), { cflags: '-fno-inline' }));
    expect(await replacedIn(tree)).toEqual(['work']);
  });

  it('an inline function of a header: all that it is inlined into', async () => {
    const header = (n: number) => `static inline int step(int n) { return n * ${n} + 1; }\n`;
    const user = (name: string) =>
      `#include "step.h"\nint ${name}(int n) { return step(n) ^ step(n + 1); }\nint not_${name}(int n) { return n; }`;
    const tree = makeTree({
      files: { 'step.h': header(3), 'a.c': user('work'), 'b.c': user('other'), 'main.c': MAIN },
      change: { 'step.h': header(5) },
    });
    expect(await replacedIn(tree)).toEqual(['other', 'work']);
  });

  it('a function with a cold part, before or behind', async () => {
    const body = (extra: string) => `#include <stdio.h>
__attribute__((cold, noinline)) void fail(const char *text) { puts(text); }
int work(int n) { if (n > 1000) { fail("large"); n /= 3; } ${extra} return n; }
int plain(int n) { return n + 2; }`;
    const cold = makeTree(one(body(''), body('n *= 3;')));
    expect(addressesOf(cold.target, 'work.cold')).toHaveLength(1);
    const [fn] = (await expectPatch(cold)).patch.manifest.objects[0]?.functions ?? [];
    expect(fn).toMatchObject({ name: 'work', newParts: ['work.cold'] });
    expect(fn?.parts.map((part) => part.address)).toEqual(addressesOf(cold.target, 'work.cold'));
    const becomes = makeTree(one('int work(int n) { return n; }', body('')));
    const [split] = (await expectPatch(becomes)).patch.manifest.objects[0]?.functions ?? [];
    expect(split).toMatchObject({ name: 'work', parts: [], newParts: ['work.cold'] });
    // What changes in the cold part alone changes the function.
    const inPart = makeTree(one(body(''), body('').replace('"large"', '"too large"')));
    expect(await replacedIn(inPart)).toEqual(['work']);
  });

  it.each([
    [
      'part',
      'helper\\.part\\.0.*',
      (k: number) => `int table[64]; void touch(int *);
static int helper(int *p, int n) { if (p == 0) return 0; for (int i = 0; i < 64; i++) { table[i] += n * ${k}; touch(p + table[i]); } touch(p); touch(p + n); return p[n]; }
int work(int n) { return helper(n > 3 ? table : 0, n) + 1; }
int other(int n) { return helper(n > 4 ? table : 0, n + 1) * 2; }`,
    ],
    [
      'constprop',
      'helper.constprop.0',
      (
        k: number,
      ) => `extern int out; ${NOINLINE} static int helper(int n, int mode) { for (int i = 0; i < n; i++) out += i * mode * ${k}; return out; }
int work(int n) { return helper(n, 12); }
int other(int n) { return helper(n + 2, 12); }`,
    ],
    [
      'isra',
      'helper.*\\.isra\\.0',
      (
        k: number,
      ) => `struct pair { long a, b, c; }; ${NOINLINE} static long helper(struct pair *p, int unused) { return p->b * ${k}; }
int work(int n) { struct pair p = {n, n + 1, n}; __asm__("" : "+m"(p)); return helper(&p, n); }
int other(int n) { struct pair p = {n, n + 3, n}; __asm__("" : "+m"(p)); return helper(&p, 3) + 2; }`,
    ],
  ])('a clone that the compiler made (.%s), for all its callers', async (_, pattern, text) => {
    const main =
      'int out; void touch(int *p) { *p += out; } int work(int n), other(int n); int main(int n, char **v) { (void)v; return work(n) + other(n); }';
    const tree = makeTree({ files: { 'a.c': text(3), 'main.c': main }, change: { 'a.c': text(5) } });
    const replaced = await replacedIn(tree);
    expect(replaced.some((name) => new RegExp(`^(${pattern})$`).test(name))).toBe(true);
  });

  it('a static variable of a function keeps its state, whatever numbers the compiler gives', async () => {
    const old = `static ${NOINLINE} int next(void) { static int count; return ++count; }\nint work(int n) { return n + next(); }`;
    const tree = makeTree(
      one(
        old,
        `static ${NOINLINE} int added(void) { static int count; return count += 10; }\n${old.replace('n + next()', 'added() + next()').replace('++count', 'count += 2')}`,
      ),
    );
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['next', 'work']);
    // Only the new one is in the patch.
    expect(patch.manifest.newData).toHaveLength(1);
    const own = patch.manifest.objects[0]?.symbols.filter((s) => s.kind === 'object');
    expect(own?.map((s) => s.address)).toEqual(addressesOf(tree.target, own?.[0]?.name ?? ''));
  });

  it('a private constant: its users get the new one', async () => {
    const text = (n: number) =>
      `static const int primes[] = {2, 3, 5, ${n}, 11, 13};\nint work(int n) { return primes[n % 6]; }\nint unrelated(int n) { return n; }`;
    const { patch } = await expectPatch(makeTree(one(text(9), text(7))));
    expect(replacedBy(patch)).toEqual(['work']);
    expect(patch.manifest.newData.map((d) => d.name)).toEqual(['primes']);
    expect(patch.manifest.notes.join()).toContain('the constant primes has a new copy');
  });

  it.each(['-fPIC', '-fno-pie'])('a table of labels goes with its function (%s)', async (cflags) => {
    const text = (k: number) =>
      `int out(int n) { return n; }\nint work(int n) { static const void *const labels[] = {&&a, &&b, &&c}; goto *labels[n % 3]; a: return out(n) + ${k}; b: return out(n) * 3; c: return out(n) - 9; }`;
    const tree = makeTree(
      one(text(5), text(7), {
        cflags: `-fno-inline ${cflags}`,
        ldflags: cflags === '-fPIC' ? '' : '-no-pie',
      }),
    );
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['work']);
    // The offsets of the labels are the same as before; the table must lead into the new code all the same.
    expect(patch.manifest.newData.map((d) => d.name.replace(/\..*/, ''))).toEqual(['labels']);
  });

  it('inline assembly', async () => {
    const text = (n: number) =>
      `int work(int n) { __asm__ volatile("imul $${n}, %0, %0" : "+r"(n)); return n; }`;
    expect(await replacedIn(makeTree(one(text(3), text(5))))).toEqual(['work']);
  });

  it('a removed function stays in the program, with a note', async () => {
    const tree = makeTree(
      one(
        'int helper(int n) { return n; }\nint work(int n) { return helper(n) + 1; }',
        'int work(int n) { return n + 2; }',
      ),
    );
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['work']);
    expect(patch.manifest.notes.join()).toContain('helper is gone from the source');
  });

  it('a header that the diff adds', async () => {
    const tree = makeTree({
      files: { 'a.c': 'int work(int n) { return n; }', 'main.c': MAIN },
      change: {
        'a.c': '#include "new.h"\nint work(int n) { return n * FACTOR; }',
        'new.h': '#define FACTOR 12\n',
      },
    });
    expect(await replacedIn(tree)).toEqual(['work']);
  });

  it('only what the diff changes, although assertions hold line numbers', async () => {
    const text = (extra: string) =>
      `#include <assert.h>\nint work(int n) {\n${extra}  return n;\n}\nint later(int n) { assert(n > 3); return n; }\n`;
    expect(await replacedIn(makeTree(one(text(''), text('  n++;\n  n *= 5;\n'))))).toEqual(['work']);
  });
});

describe('several files', () => {
  it('that share a new function and a new variable', async () => {
    const tree = makeTree({
      files: {
        'a.c': 'int work(int n) { return n; }',
        'b.c': 'int quiet(void) { return 1; }',
        'main.c': MAIN,
      },
      change: {
        'a.c': 'int added(int); extern int level; int work(int n) { return added(n) + level; }',
        'b.c':
          'int level = 3; static int times; int quiet(void) { return 1; } int added(int n) { return n * 2 + ++times; }',
      },
    });
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['work']);
    expect(patch.manifest.newFunctions).toEqual(['added']);
    expect(patch.manifest.newData.map((d) => d.name).sort()).toEqual(['level', 'times']);
    // Nothing is left for the dynamic linker to find.
    const used = new Set(
      patch.sections.flatMap((s) => s.relocations.map((r) => patch.symbols[r.symbolIndex])),
    );
    expect([...used].filter((s) => s?.kind === 'external' && s.object === '*')).toEqual([]);
  });
});

describe('thread-local variables', () => {
  const text = (k: number) => `__thread int hits = 3; static __thread long own; extern __thread int elsewhere;
int work(int n) { own += ${k}; return hits += n + elsewhere + (int)own; }`;
  const other =
    '__thread int elsewhere = 5; int work(int); int main(int n, char **v) { (void)v; return work(n); }';
  it.each([
    ['local exec, in a position-independent program', '-fPIE', '-pie', 'R_X86_64_TPOFF32'],
    ['local exec, in one at a fixed address', '-fno-pie', '-no-pie', 'R_X86_64_TPOFF32'],
    ['general dynamic, relaxed by the linker', '-fPIC', '-pie', 'R_X86_64_TLSGD'],
    ['general dynamic without a PLT', '-fPIC -fno-plt', '-pie', 'R_X86_64_TLSGD'],
    ['initial exec', '-fPIC -ftls-model=initial-exec', '-pie', 'R_X86_64_GOTTPOFF'],
    ['local dynamic', '-fPIC -ftls-model=local-dynamic', '-pie', 'R_X86_64_TLSLD'],
  ])('%s', async (_, cflags, ldflags, type) => {
    const tree = makeTree({
      files: { 'a.c': text(1), 'main.c': other },
      change: { 'a.c': text(2) },
      cflags,
      ldflags,
    });
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['work']);
    const symbols = patch.manifest.objects[0]?.symbols.filter((s) => s.kind === 'tls').map((s) => s.name);
    expect(symbols?.sort()).toEqual(['elsewhere', 'hits', 'own']);
    expect(run('readelf', ['-rW', `${tree.diff}.lgp`], '/')).toContain(type);
  });

  it.each([
    ['general dynamic', '-fPIC'],
    ['initial exec', '-fPIC -ftls-model=initial-exec'],
  ])('%s, in a library', async (_, cflags) => {
    const tree = makeTree({
      files: { 'a.c': text(1), 'b.c': '__thread int elsewhere = 5;' },
      change: { 'a.c': text(2) },
      cflags,
      ldflags: '-shared -Wl,-soname,libwork.so.3',
    });
    const { patch } = await expectPatch(tree);
    expect(patch.manifest.objects[0]?.name).toBe('libwork.so.3');
    expect(replacedBy(patch)).toEqual(['work']);
  });
});

const SIMPLE = one(
  '#include <assert.h>\nint work(int n) { assert(n < 100); return n + 1; }',
  '#include <assert.h>\nint work(int n) { assert(n < 100); return n * 3; }',
);

describe('how it is compiled', () => {
  const bin = (name: string, script: string): string => {
    const folder = join(dirname(makeTree(SIMPLE).diff), 'bin');
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(folder, name), 0o755);
    return folder;
  };

  it.each([
    ['cc', {}],
    ['gcc-12', {}],
    ['x86_64-linux-gnu-gcc', {}],
    ['an absolute path, as cmake writes it', { cc: '/usr/bin/gcc' }],
    ['-g', { cflags: '-g' }],
    ['-pipe', { cflags: '-pipe' }],
    ['-fPIC -fno-plt', { cflags: '-fPIC -fno-plt' }],
    ['a fixed address', { cflags: '-fno-pie', ldflags: '-no-pie' }],
    ['-O0', { cflags: '-O0' }],
    ['-O3 -march=haswell', { cflags: '-O3 -march=haswell' }],
    ['-fcf-protection=none -fno-asynchronous-unwind-tables', { cflags: '-fcf-protection=none' }],
    ['-j4', { command: ['make', '-j4'] }],
    ['compiled and linked at once', { command: ['gcc', '-O2', '-o', 'prog', 'a.c', 'main.c'] }],
    [
      'a shell script',
      { command: ['sh', '-c', 'for f in a main; do gcc -O2 -c $f.c; done; gcc -o prog a.o main.o'] },
    ],
    [
      'a build directory',
      {
        command: [
          'sh',
          '-c',
          'mkdir -p out && cd out && gcc -O2 -c ../a.c ../main.c && gcc -o ../prog a.o main.o',
        ],
      },
    ],
    [
      'absolute source paths',
      {
        command: [
          'sh',
          '-c',
          'gcc -O2 -c $PWD/a.c -o a.o && gcc -O2 -c $PWD/main.c -o main.o && gcc -o prog a.o main.o',
        ],
      },
    ],
  ] as const)('%s', async (name, options: Partial<TreeOptions>) => {
    const cc = /^\S+(cc|gcc)/.test(name) || name === 'cc' ? name : 'gcc';
    expect(await replacedIn(makeTree({ ...SIMPLE, cc, ...options }))).toEqual(['work']);
  });

  it('a compiler cache, called by its own name or under the name of the compiler', async () => {
    // It answers from its cache unless it is told not to.
    const folder = bin('ccache', '[ -n "$CCACHE_DISABLE" ] || { echo "cached" >&2; }\nexec "$@"');
    expect(await replacedIn(makeTree({ ...SIMPLE, cc: `${folder}/ccache gcc` }))).toEqual(['work']);
    expect(await replacedIn(makeTree({ ...SIMPLE, cc: `${folder}/ccache /usr/bin/gcc` }))).toEqual(['work']);
  });

  it('clang, by name, in both ways (a stand-in that compiles with gcc)', async () => {
    const folder = bin('clang', 'exec gcc "$@"');
    const path = process.env.PATH;
    process.env.PATH = `${folder}:${path}`;
    try {
      expect(await replacedIn(makeTree({ ...SIMPLE, cc: 'clang' }))).toEqual(['work']);
      const atOnce = { ...SIMPLE, command: ['clang', '-O2', 'a.c', 'main.c', '-o', 'prog'] };
      expect(await replacedIn(makeTree(atOnce))).toEqual(['work']);
    } finally {
      process.env.PATH = path;
    }
  });

  it('C++ without exceptions: methods, templates, inline functions of a header in several files', async () => {
    const header = (k: number) => `#pragma once
struct Shape { int side; virtual int area() const { return side * side * ${k}; } virtual ~Shape() = default; };
template <typename T> ${NOINLINE} T twice(T value) { static T calls; calls++; return value * ${k} + calls; }
inline ${NOINLINE} int shared(int n) { return n ^ ${k}; }
`;
    const user = (name: string) =>
      `#include "shape.h"\nint ${name}(int n) { Shape s; s.side = n; const Shape *p = &s; __asm__("" : "+r"(p)); return p->area() + twice(n) + shared(n); }`;
    const tree = makeTree({
      files: {
        'shape.h': header(2),
        'a.cc': user('work'),
        'b.cc': user('other'),
        'main.cc': 'int work(int), other(int); int main(int n, char **) { return work(n) + other(n); }',
      },
      change: { 'shape.h': header(3) },
      cc: 'g++',
      cflags: '-fno-exceptions -fno-rtti',
    });
    const replaced = await replacedIn(tree);
    // What is guessed to be the virtual call's target is inlined, too.
    expect(replaced.filter((name) => !/^_Z[45](work|other)i$/.test(name))).toEqual([
      '_Z5twiceIiET_S0_',
      '_Z6sharedi',
      '_ZNK5Shape4areaEv',
    ]);
  });

  it('two programs of one tree, both with a main: the one that is the target', async () => {
    const header = (k: number) => `static inline int step(int n) { return n * ${k}; }\n`;
    const tree = makeTree({
      files: {
        Makefile:
          'all: prog tool\nprog: a.o main.o\n\tgcc -o $@ a.o main.o\ntool: tool.o\n\tgcc -o $@ tool.o\n%.o: %.c step.h\n\tgcc -O2 -c -o $@ $<\n',
        'step.h': header(3),
        'a.c': '#include "step.h"\nint work(int n) { return step(n); }',
        'main.c': MAIN,
        'tool.c': '#include "step.h"\nint main(int n, char **v) { (void)v; return step(n) + 1; }',
      },
      change: { 'step.h': header(4) },
    });
    const { patch } = await expectPatch(tree);
    expect(replacedBy(patch)).toEqual(['work']);
    expect(patch.manifest.notes.join()).toContain('left out a compilation of tool.c');
  });

  it('C++ with exceptions elsewhere: says that none can pass through the new code', async () => {
    const tree = makeTree({
      files: {
        'a.cc': 'int may(int); int work(int n) { return may(n) + 1; }',
        'b.cc': 'int may(int n) { if (n > 5) throw n; return n; }',
        'main.cc':
          'int work(int); int main(int n, char **) { try { return work(n); } catch (int e) { return e; } }',
      },
      change: { 'a.cc': 'int may(int); int work(int n) { return may(n) + 2; }' },
      cc: 'g++',
    });
    expect((await expectPatch(tree)).patch.manifest.notes.join()).toContain(
      'an exception can not pass through',
    );
  });

  it('a library and a program of the same sources: whichever is the target', async () => {
    const makefile = `all: prog libwork.so
prog: a.o main.o
\tgcc -o $@ a.o main.o
libwork.so: a.lo
\tgcc -shared -o $@ a.lo
a.lo: a.c
\tgcc -O2 -fPIC -c -o $@ a.c
%.o: %.c
\tgcc -O2 -c -o $@ $<
tool.o: tool.c
`;
    const text = (k: number) =>
      `static int state; int helper(int n); int work(int n) { state += n; return helper(state) * ${k}; }\nint helper(int n) { return n + 1; }`;
    const files = { Makefile: makefile, 'a.c': text(3), 'main.c': MAIN };
    for (const target of ['prog', 'libwork.so']) {
      const tree = makeTree({ files, change: { 'a.c': text(4) }, target });
      const { patch } = await expectPatch(tree);
      expect(replacedBy(patch)).toEqual(['work']);
      expect(patch.manifest.objects[0]?.functions[0]?.old.address).toBe(addressesOf(tree.target, 'work')[0]);
      expect(patch.manifest.notes.join('\n')).toContain(
        `left out a compilation of a.c, which is not in ${target}`,
      );
    }
  });

  it('a stripped target: by build-id, by debug link, or in a folder that is named', async () => {
    const separate = (how: 'build-id' | 'debuglink') => {
      const tree = makeTree({
        ...SIMPLE,
        ldflags: how === 'build-id' ? '-Wl,--build-id' : '-Wl,--build-id=none',
      });
      const folder = dirname(tree.diff);
      const id = /Build ID: ([0-9a-f]+)/.exec(run('readelf', ['-n', tree.target], '/'))?.[1] ?? '';
      const debug =
        how === 'build-id'
          ? join(folder, 'debug/.build-id', id.slice(0, 2), `${id.slice(2)}.debug`)
          : join(folder, 'debug/prog.debug');
      mkdirSync(dirname(debug), { recursive: true });
      run('objcopy', ['--only-keep-debug', tree.target, debug], '/');
      run('strip', [tree.target], '/');
      if (how === 'debuglink') run('objcopy', [`--add-gnu-debuglink=${debug}`, tree.target], '/');
      return { tree, folder: join(folder, 'debug') };
    };
    for (const how of ['build-id', 'debuglink'] as const) {
      const { tree, folder } = separate(how);
      expect(await replacedIn(tree, '--debug-dir', folder)).toEqual(['work']);
    }
    const { tree, folder } = separate('debuglink');
    run('mv', [join(folder, 'prog.debug'), dirname(tree.target)], '/');
    expect(await replacedIn(tree)).toEqual(['work']);
  });

  it('leaves the tree as it was', async () => {
    const tree = makeTree(SIMPLE);
    const state = () =>
      run('sh', ['-c', 'find . -type f | sort | xargs stat -c "%n %Y %s"; cat *.c'], tree.source);
    const before = state();
    // What a program that runs there may have left.
    run('mkfifo', ['requests'], tree.source);
    await expectPatch(tree);
    expect(state()).toBe(before);
  });

  it('says in text what it does, and writes events that fit their schema', async () => {
    const { jsonLineSchema } = await import('../../src/cli/json-schema.js');
    const tree = makeTree(SIMPLE);
    const { run: result } = await buildPatch(tree);
    for (const line of result.lines) jsonLineSchema.parse(line);
    expect(result.lines.map((line) => line.event)).toContain('built');
    const args = [
      '--source',
      tree.source,
      '--diff',
      tree.diff,
      '--target',
      tree.target,
      '-o',
      `${tree.diff}.2`,
    ];
    const text = await cli('build', ...args, '--', 'make');
    expect(text.stdout).toMatch(/built .*: replaces work/);
    expect(readFileSync(`${tree.diff}.2`).length).toBeGreaterThan(500);
  });
});
