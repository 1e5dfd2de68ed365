import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  buildPatch,
  cli,
  expectRefusal,
  makeTree,
  refusalOf,
  run,
  type Tree,
  type TreeOptions,
} from '../support/source-tree.js';

/** Each ends with one error that says what, where and what to do, exit code 1, and nothing written. */

const MAIN = 'int work(int n);\nint main(int argc, char **argv) { (void)argv; return work(argc); }\n';
const one = (before: string, after: string, more: Partial<TreeOptions> = {}): TreeOptions => ({
  files: { 'a.c': before, 'main.c': MAIN },
  change: { 'a.c': after },
  ...more,
});
const WORK = 'int work(int n) { return n + 1; }';
const FIXED = 'int work(int n) { return n * 3; }';
const SIMPLE = one(WORK, FIXED);

type Case = readonly [what: string, code: string, names: RegExp, options: TreeOptions];

describe('a change that can not be made in a running program', () => {
  const cases: readonly Case[] = [
    [
      'initial value of a variable',
      'data-initial-value-changed',
      /a\.c: .*: limit/,
      one(`int limit = 3; ${WORK}`, `int limit = 4; ${FIXED}`),
    ],
    [
      'a constant that other files may hold',
      'data-initial-value-changed',
      /: limits/,
      one(`const int limits[] = {1, 2}; ${WORK}`, `const int limits[] = {1, 3}; ${FIXED}`),
    ],
    [
      'what a table of pointers leads to',
      'data-initial-value-changed',
      /: handlers/,
      one(
        `static int f(int n) { return n; } static int g(int n) { return -n; } int (*handlers[])(int) = {f, g}; ${WORK}`,
        `static int f(int n) { return n; } static int g(int n) { return -n; } int (*handlers[])(int) = {g, f}; ${FIXED}`,
      ),
    ],
    [
      'a private table of functions, which may be registered somewhere',
      'data-initial-value-changed',
      /: operations/,
      one(
        `static int f(int n) { return n; } static int g(int n) { return -n; } static int (*const operations[])(int) = {f, g}; int work(int n) { return operations[n & 1](n); }`,
        `static int f(int n) { return n; } static int g(int n) { return -n; } static int (*const operations[])(int) = {g, f}; int work(int n) { return operations[n & 1](n); }`,
      ),
    ],
    [
      'size of a variable',
      'data-layout-changed',
      /: state/,
      one(
        'struct s { int a; } state; int work(int n) { return state.a += n; }',
        'struct s { int a, b; } state; int work(int n) { return state.b += n; }',
      ),
    ],
    [
      'layout of a structure on the heap',
      'type-layout-changed',
      /a\.c: .* struct node is laid out/,
      one(
        '#include <stdlib.h>\nstruct node { int a; struct node *next; }; struct node *head; int work(int n) { struct node *p = calloc(1, sizeof *p); p->next = head; head = p; return p->a = n; }',
        '#include <stdlib.h>\nstruct node { int a, checked; struct node *next; }; struct node *head; int work(int n) { struct node *p = calloc(1, sizeof *p); p->next = head; head = p; p->checked = 1; return p->a = n; }',
      ),
    ],
    [
      'a new thread-local variable',
      'tls-new',
      /mine/,
      one(WORK, 'static __thread int mine; int work(int n) { return mine += n; }'),
    ],
    [
      'a changed thread-local variable',
      'tls-changed',
      /: hits/,
      one(
        '__thread int hits = 1; int work(int n) { return hits += n; }',
        '__thread int hits = 2; int work(int n) { return hits += n; }',
      ),
    ],
    [
      'a constructor',
      'constructors-changed',
      /\.init_array/,
      one(WORK, `int ready; __attribute__((constructor)) static void prepare(void) { ready = 1; } ${FIXED}`),
    ],
    [
      'a destructor',
      'constructors-changed',
      /\.fini_array/,
      one(WORK, `int ready; __attribute__((destructor)) static void finish(void) { ready = 0; } ${FIXED}`),
    ],
    [
      'an implementation chosen at start',
      'ifunc-changed',
      /: pick/,
      one(
        'static int f(int n) { return n; } static int g(int n) { return -n; } static void *choose(void) { return f; } int pick(int) __attribute__((ifunc("choose"))); int work(int n) { return pick(n) + g(n); }',
        'static int f(int n) { return n; } static int g(int n) { return -n; } static void *choose(void) { return g; } int pick(int) __attribute__((ifunc("choose"))); int work(int n) { return pick(n) + f(n); }',
      ),
    ],
    [
      'an entry of a table that the linker gathers',
      'gathered-section-changed',
      /commands/,
      one(
        `struct command { int id; }; __attribute__((used, section("commands"))) static struct command first = {1}; ${WORK}`,
        `struct command { int id; }; __attribute__((used, section("commands"))) static struct command first = {1}; __attribute__((used, section("commands"))) static struct command second = {2}; ${FIXED}`,
      ),
    ],
    [
      'thread-local descriptors',
      'relocation-unsupported',
      /work refers to something by R_X86_64_GOTPC32_TLSDESC/,
      {
        files: { 'a.c': '__thread int hits; int work(int n) { return hits += n; }' },
        change: { 'a.c': '__thread int hits; int work(int n) { return hits += n * 2; }' },
        cflags: '-fPIC -mtls-dialect=gnu2',
        ldflags: '-shared',
      },
    ],
    [
      'a variable without a place',
      'common-new',
      /: added/,
      one(WORK, 'int added; int work(int n) { return added += n; }', { cflags: '-fcommon' }),
    ],
    [
      'static variables that can not be told apart',
      'static-data-ambiguous',
      /count/,
      one(
        'int a(void) { static int count; return ++count; } int b(void) { static int count; return ++count; } int work(int n) { return n; }',
        'int c(void) { static int count; return ++count; } int d(void) { static int count; return ++count; } int work(int n) { return c(); }',
      ),
    ],
    [
      'exceptions',
      'exception-data',
      /work/,
      {
        files: {
          'a.cc':
            'void may(int); extern "C" int work(int n) { try { may(n); } catch (int e) { return e; } return n; }',
          'b.cc': 'void may(int n) { if (n > 3) throw n; }',
          'main.cc': 'extern "C" int work(int); int main(int n, char **) { return work(n); }',
        },
        change: {
          'a.cc':
            'void may(int); extern "C" int work(int n) { try { may(n + 1); } catch (int e) { return e; } return n; }',
        },
        cc: 'g++',
      },
    ],
    [
      'assembly',
      'assembly-changed',
      /x\.S/,
      {
        files: { 'a.c': WORK, 'main.c': MAIN, 'x.S': 'nop\n' },
        change: { 'x.S': 'nop\nnop\n' },
      },
    ],
    ['link-time optimisation', 'lto-object', /link-time/, one(WORK, FIXED, { cflags: '-flto' })],
    [
      'a new source file',
      'new-object',
      /new\.o/,
      {
        files: {
          Makefile:
            'prog: $(patsubst %.c,%.o,$(wildcard *.c))\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O2 -c -o $@ $<\n',
          'a.c': WORK,
          'main.c': MAIN,
        },
        change: {
          'a.c': 'int more(int); int work(int n) { return more(n); }',
          'new.c': 'int more(int n) { return n; }',
        },
      },
    ],
    ['nothing but a comment', 'nothing-changed', /nothing to patch/, one(WORK, `/* better */ ${WORK}`)],
    [
      'a file that is not compiled',
      'nothing-compiled',
      /compiled nothing/,
      {
        files: { 'a.c': WORK, 'main.c': MAIN, 'notes.txt': 'one\n' },
        change: { 'notes.txt': 'two\n' },
        rebuild: ['sh', '-c', '[ -e once ] && make || { touch once; make -B; }'],
      },
    ],
    [
      'a file that is not compiled, in a tree that is built',
      'nothing-captured',
      /compiled nothing/,
      { files: { 'a.c': WORK, 'main.c': MAIN, 'notes.txt': 'one\n' }, change: { 'notes.txt': 'two\n' } },
    ],
  ];
  it.each(cases)('%s: %s', async (_, code, names, options) => {
    expect(await expectRefusal(makeTree(options), code)).toMatch(names);
  });
});

it('accepts a layout that only lives inside a function, when told', async () => {
  const text = (extra: string, use: string) =>
    `struct pair { int a${extra}; }; int sum(struct pair *); int work(int n) { struct pair p = {n}; ${use} return p.a + n; }`;
  const tree = makeTree(one(text('', ''), text(', b', 'p.b = n * 2; __asm__("" : "+m"(p)); n = p.b;')));
  await expectRefusal(tree, 'type-layout-changed');
  const { run: result } = await buildPatch(tree, '--accept-layout-change', 'pair');
  expect(result.code).toBe(0);
});

describe('a target that is not what the sources make', () => {
  it.each([
    ['flags', 'work', '-O1'],
    ['a macro', 'other', '-DEXTRA=4'],
    ['a constant', 'scaled', '-DFACTOR=1.25'],
    ['a jump table', 'choose', '-DSWAP'],
  ])('built with other %s: names %s', async (_, name, flags) => {
    const text = (add: number) => `#ifndef EXTRA
#define EXTRA 1
#endif
#ifndef FACTOR
#define FACTOR 1.75
#endif
#ifdef SWAP
#define A 1
#define B 2
#else
#define A 2
#define B 1
#endif
extern int out(int);
int work(int n) { int s = 0; for (int i = 0; i < n; i++) s += out(i) * ${add}; return s; }
int other(int n) { return n + EXTRA; }
double scaled(int n) { return n * FACTOR; }
int choose(int n) { switch (n) { case 0: return out(3); case A: return out(4) + 1; case B: return out(9) * 2; case 3: out(5); return out(6); case 4: return out(1) ^ 5; case 5: return out(2) | 1; } return 0; }
`;
    const main = `int out(int n) { return n; } ${MAIN}`;
    const tree = makeTree({ files: { 'a.c': text(3), 'main.c': main }, change: { 'a.c': text(4) } });
    run('make', ['-B', `CFLAGS=-O2 ${flags}`], tree.source);
    // The tree as it is builds without the flags: make's timestamps say it is up to date, the touched file is not.
    expect(await expectRefusal(tree, 'target-differs')).toMatch(
      new RegExp(`: ${name} differs at offset \\d+`),
    );
  });

  it('stripped, without a debug file', async () => {
    const tree = makeTree(SIMPLE);
    run('strip', [tree.target], '/');
    expect(await expectRefusal(tree, 'target-stripped')).toContain(tree.target);
  });

  it('stripped, with the debug file of another build', async () => {
    const tree = makeTree({ ...SIMPLE, ldflags: '-Wl,--build-id=none' });
    const debug = join(dirname(tree.target), 'prog.debug');
    run('objcopy', ['--only-keep-debug', tree.target, debug], '/');
    run('strip', [tree.target], '/');
    run('objcopy', [`--add-gnu-debuglink=${debug}`, tree.target], '/');
    writeFileSync(debug, Buffer.concat([readFileSync(debug), Buffer.alloc(8)]));
    await expectRefusal(tree, 'target-stripped');
  });

  it('made of other files', async () => {
    const tree = makeTree(SIMPLE);
    const other = makeTree({ files: { 'x.c': 'int main(void) { return 0; }' }, change: { 'x.c': '' } });
    expect(await expectRefusal({ ...tree, target: other.target }, 'object-not-in-target')).toContain(
      'a.c changes (work)',
    );
  });

  it('an object file, a text, or nothing', async () => {
    const tree = makeTree(SIMPLE);
    await expectRefusal({ ...tree, target: join(tree.source, 'a.o') }, 'not-a-program');
    await expectRefusal({ ...tree, target: join(tree.source, 'a.c') }, 'malformed-input');
    expect(await expectRefusal({ ...tree, target: join(tree.source, 'gone') }, 'file-unreadable')).toContain(
      'gone',
    );
  });

  it('a local symbol that two files of one name have', async () => {
    const file = (k: number) =>
      `static volatile int state; int NAME(int n) { state += n; return state * ${k}; }\n`;
    const makefile =
      'prog: x/a.o y/a.o main.o\n\tgcc -o $@ $^\nx/a.o: x/a.c\n\tgcc -O2 -c -o $@ $<\ny/a.o: y/a.c\n\tgcc -O2 -c -o $@ $<\nmain.o: main.c\n';
    const tree = makeTree({
      files: {
        Makefile: makefile,
        'x/a.c': file(3).replace('NAME', 'work'),
        'y/a.c': file(5).replace('NAME', 'other'),
        'main.c': MAIN,
      },
      change: { 'x/a.c': file(4).replace('NAME', 'work') },
    });
    expect(await expectRefusal(tree, 'symbol-ambiguous')).toContain('2 symbols state');
  });
});

describe('a build that can not be made', () => {
  it('fails, and its output is shown', async () => {
    const tree = makeTree(SIMPLE);
    const failing: Tree = { ...tree, command: ['sh', '-c', 'echo "no rule for this" >&2; exit 7'] };
    expect(await expectRefusal(failing, 'build-failed')).toMatch(
      /without the diff ended with status 7:\nno rule for this/,
    );
    const missing: Tree = { ...tree, command: ['no-such-command'] };
    expect(await expectRefusal(missing, 'build-failed')).toMatch(
      /could not be started \(.*no-such-command ENOENT\), without a word$/,
    );
    const killed: Tree = { ...tree, command: ['sh', '-c', 'kill -TERM $$'] };
    expect(await expectRefusal(killed, 'build-failed')).toContain('SIGTERM');
  });

  it('fails with the diff alone', async () => {
    const tree = makeTree(one(WORK, 'int work(int n) { return n * undeclared; }'));
    expect(await expectRefusal(tree, 'build-failed')).toMatch(/with the diff[\s\S]*undeclared/);
  });

  it('compiles nothing', async () => {
    const tree = makeTree(SIMPLE);
    await expectRefusal({ ...tree, command: ['true'] }, 'nothing-captured');
  });

  it('was configured for the tree itself', async () => {
    const tree = makeTree(SIMPLE);
    const outside: Tree = { ...tree, command: ['gcc', '-O2', '-c', join(tree.source, 'a.c'), '-o', 'a.o'] };
    expect(await expectRefusal(outside, 'build-leaves-copy')).toContain(join(tree.source, 'a.c'));
  });

  it('has a diff that does not apply, fits other files, or is none', async () => {
    const tree = makeTree(SIMPLE);
    writeFileSync(join(tree.source, 'a.c'), 'int work(int n) { return 12345; }\n');
    expect(await expectRefusal(tree, 'diff-does-not-apply')).toContain('a.c');
    const text = readFileSync(tree.diff, 'utf8');
    writeFileSync(tree.diff, text.replaceAll('a.c', 'gone.c'));
    expect(await expectRefusal(tree, 'diff-does-not-fit')).toContain('gone.c');
    // No name of a file in the tree: one that leads out of it, one that no file has, one that is too long.
    for (const name of ['../source/a.c', 'a\0.c', 'a'.repeat(5000)]) {
      writeFileSync(tree.diff, text.replaceAll('a.c', name));
      await expectRefusal(tree, 'diff-does-not-fit');
    }
    writeFileSync(tree.diff, 'not a diff\n');
    await expectRefusal(tree, 'diff-empty');
    await expectRefusal({ ...tree, diff: `${tree.diff}.gone` }, 'diff-unreadable');
    await expectRefusal({ ...tree, source: `${tree.source}.gone` }, 'no-source');
  });
});

describe('two objects', () => {
  const tree = makeTree(SIMPLE);
  const compiled = (name: string, text: string, ...flags: string[]) => {
    const folder = dirname(tree.diff);
    mkdirSync(join(folder, name));
    writeFileSync(join(folder, name, 'a.c'), text);
    run('gcc', ['-O2', '-c', 'a.c', ...flags], join(folder, name));
    return join(folder, name, 'a.o');
  };
  const output = `${tree.diff}.lgp`;
  const build = (orig: string, patched: string) =>
    cli('--json', 'build', '--orig', orig, '--patched', patched, '--target', tree.target, '-o', output);

  it('without sections of their own', async () => {
    const before = `int work(int n) { return n + 1; }\nint second(int n) { return n; }`;
    const orig = compiled('o1', before);
    const patched = compiled('p1', before.replace('+ 1', '* 3'));
    expect(refusalOf(await build(orig, patched), 'no-function-sections', output)).toContain('work');
  });

  it('that are no objects, damaged, or not there', async () => {
    const orig = compiled('o2', WORK);
    expect(refusalOf(await build(tree.target, orig), 'not-an-object', output)).toContain('prog');
    const cut = join(dirname(orig), 'cut.o');
    writeFileSync(cut, readFileSync(orig).subarray(0, 300));
    expect(refusalOf(await build(orig, cut), 'malformed-input', output)).toContain('cut.o');
    expect(refusalOf(await build(orig, `${orig}.gone`), 'file-unreadable', output)).toContain('gone');
  });

  it('of which the target has a part that jumps back into the first bytes', async () => {
    const code = 'not-redirectable';
    const folder = join(dirname(tree.diff), code);
    mkdirSync(folder);
    const assembly = (factor: number) => `.section .text.work,"ax"
.globl work
.type work, @function
work: mov %edi, %eax
1: cmp $1000, %eax
ja work.cold
imul $${factor}, %eax, %eax
ret
.size work, . - work
.section .text.unlikely.work,"ax"
.type work.cold, @function
work.cold: xor %eax, %eax
jmp 1b
.size work.cold, . - work.cold
.section .note.GNU-stack,"",@progbits
`;
    for (const [name, factor] of [
      ['orig', 3],
      ['patched', 5],
    ] as const) {
      writeFileSync(join(folder, `${name}.s`), assembly(factor));
      run('gcc', ['-c', `${name}.s`], folder);
    }
    writeFileSync(join(folder, 'main.c'), MAIN);
    run('gcc', ['-o', 'prog', 'orig.o', 'main.c'], folder);
    const result = await cli(
      ...['--json', 'build', '--orig', join(folder, 'orig.o'), '--patched', join(folder, 'patched.o')],
      ...['--target', join(folder, 'prog'), '-o', output],
    );
    expect(refusalOf(result, code, output)).toContain('work');
  });

  it('of which data shares a section: what is there stays where it is', async () => {
    const text = (extra: string, use: string) =>
      `static int a = 4, ${extra} b = 5; int work(int n) { a += n; b ^= a; return ${use} + b; }`;
    const variables = makeTree(
      one(text('', 'n'), text('c = 7,', '(c += n)'), { cflags: '-fno-toplevel-reorder' }),
    );
    const folder = dirname(variables.diff);
    for (const side of ['a', 'b'])
      run(
        'gcc',
        [
          '-O2',
          '-fno-toplevel-reorder',
          '-ffunction-sections',
          '-c',
          '-o',
          `${folder}/${side}.o`,
          `${folder}/${side}/a.c`,
        ],
        folder,
      );
    const result = await cli(
      ...['--json', 'build', '--orig', `${folder}/a.o`, '--patched', `${folder}/b.o`],
      ...['--target', variables.target, '-o', output],
    );
    expect(result.code).toBe(0);
    const inspected = await cli('--json', 'inspect', output);
    expect(inspected.stdout).toMatch(/"symbols":\[\{"name":"a","sympos":0,"kind":"object"[\s\S]*"name":"b"/);
    run('rm', [output], '/');
  });
});

describe('where the patch goes', () => {
  it('can not be written: said before the build', async () => {
    const tree = makeTree(SIMPLE);
    const args = ['--json', 'build', '--source', tree.source, '--diff', tree.diff, '--target', tree.target];
    for (const place of ['/no/such/folder/x.lgp', tree.source, join(tree.target, 'x.lgp'), '/proc/x.lgp']) {
      const result = await cli(...args, '-o', place, '--', 'make');
      expect(result.code).toBe(1);
      expect(result.lines[result.lines.length - 1]).toMatchObject({ code: 'output-unwritable' });
    }
  });

  it('keeps an older patch when the build is refused', async () => {
    const tree = makeTree(one(WORK, `/* */ ${WORK}`));
    const output = `${tree.diff}.old`;
    writeFileSync(output, 'old');
    const args = ['build', '--source', tree.source, '--diff', tree.diff, '--target', tree.target];
    const result = await cli(...args, '-o', output, '--', 'make');
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/nothing to patch/);
    expect(result.stderr).not.toMatch(/^\s+at /m);
    expect(readFileSync(output, 'utf8')).toBe('old');
  });
});

describe('usage', () => {
  it.each([
    [['--target', 'x', '-o', 'y']],
    [['--source', 's', '--diff', 'd', '--target', 'x', '-o', 'y']],
    [['--source', 's', '--target', 'x', '-o', 'y', '--', 'make']],
    [['--source', 's', '--diff', 'd', '--orig', 'o', '--target', 'x', '-o', 'y', '--', 'make']],
    [['--orig', 'o', '--target', 'x', '-o', 'y']],
    [['--source', 's', '--diff', 'd', '-o', 'y', '--', 'make']],
    [['--source', 's', '--diff', 'd', '--target', 'x', '--', 'make']],
    [['--sauce', 's']],
  ])('%j: exit code 2', async (args) => {
    const result = await cli('build', ...args);
    expect(result.code).toBe(2);
    expect(result.stderr).toMatch(/^error: /);
    expect(existsSync('y')).toBe(false);
  });
});
