import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { readModuleImage } from '../kernel-image/module-image.js';
import { parsePatch } from '../patch/file.js';
import { sectionsFor } from '../patch/part.js';
import { readElf, readObject, sha256 } from './from-objects.js';
import { modulesOfCommand } from './kernel-tree.js';
import { makePatch, type PatchSource } from './make-patch.js';
import { moduleTarget } from './module-target.js';
import { TargetModel } from './target-model.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-module-target-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const FLAGS = [
  '-O2',
  '-c',
  '-fno-pic',
  '-mcmodel=kernel',
  '-mno-red-zone',
  '-fcf-protection=none',
  '-pg',
  '-mfentry',
];

function run(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}

function compile(name: string, source: string, ...flags: string[]): string {
  const path = join(folder, name);
  writeFileSync(`${path}.c`, source);
  run('gcc', ...FLAGS, ...flags, '-o', path, `${path}.c`);
  return path;
}

/** A module's file of several C files, as kbuild links one. */
function module(name: string, sources: readonly string[], exported: readonly string[] = []) {
  const text = (section: string, strings: readonly string[]) =>
    `asm(".pushsection ${section},\\"a\\"\\n${strings.map((each) => `.asciz \\"${each}\\"\\n`).join('')}.popsection");`.replaceAll(
      '\n',
      '\\n',
    );
  const about =
    text('.modinfo', [`name=${name}`, 'vermagic=6.1.0 SMP']) + text('__ksymtab_strings', exported);
  const objects = [...sources, about].map((source, i) => compile(`${name}-${i}.o`, source));
  run('ld', '-r', '--build-id=sha1', '-o', `${name}.ko`, ...objects);
  return readModuleImage(readElf(join(folder, `${name}.ko`)));
}

/** What the kernel has; its code is not looked at. */
const kernel = new TargetModel(
  readElf(process.execPath),
  'vmlinux',
  Object.entries({ _printk: false, kernel_secret: true, kernel_twice: false }).map(([name, isLocal], i) => ({
    ...{ name, isLocal, address: 0x1000 + i * 16, sizeBytes: 16, kind: 'func' as const, fileName: undefined },
  })),
  { isKernel: true },
);

let compiled = 0;
function pair(before: string, after: string) {
  const sections = ['-ffunction-sections', '-fdata-sections'];
  const object = (source: string) => readObject(compile(`pair-${compiled++}.o`, source, ...sections));
  return { original: object(before), patched: object(after) };
}

function build(sources: readonly PatchSource[]) {
  const options = { name: 'x', description: '', createdAt: '', acceptedTypes: [], onEvent: () => {} };
  const { bytes } = makePatch(sources, { ...options, decoder: x86_64.decoder, digest: sha256 });
  return parsePatch(bytes, 'x', sha256);
}

const DECLARED = `
extern int _printk(const char *, ...); extern int other(int); extern int exported(int); extern int hidden(int);
extern int in_other_file(int);
`;
const A = `${DECLARED}
static int count = 3;
static const int words[] = {3, 1, 4, 1, 5}, limits[] = {7, 2, 9};
static __attribute__((noinline)) int helper(int n) { return n * words[n % 5] + other(n); }
static __attribute__((noinline)) int same(int n) { return n + count; }
static __attribute__((section(".init.text"), noipa)) int starts(int n) { return n * 7 + _printk("a"); }
int init_module(void) { return starts(1); }
int f(int n) { count++; return _printk("first text") + helper(n) + in_other_file(n); }
int uses_same(int n) { return _printk("second text") + same(n); }
int says(int n) { static int __warned; if (!__warned) { __warned = 1; _printk("third text"); } return limits[n % 3]; }
`;
const B = `${DECLARED}
static int same_too; static const int limits[] = {1, 8, 2}; static const char name[] = "b";
static __attribute__((noinline)) int same(int n) { return n - same_too++; }
int in_other_file(int n) { return same(n) + _printk(name); }
int g(int n) { static int __warned; return in_other_file(n) + limits[n % 3] + __warned++; }
`;

const dependency = module(
  'dep',
  ['int exported(int n) { return n; } int hidden(int n) { return n + 1; }'],
  ['exported'],
);
const image = module('mod', [A, B]);
const modules: { target: TargetModel; exports: ReadonlySet<string> }[] = [];
for (const each of [image, dependency])
  modules.push({ target: moduleTarget(each, { kernel, modules }), exports: each.exports });
const target = modules[0]?.target as TargetModel;

/** A patch of the module from one file with a change. */
const changed = (source: string, from: string, to: string) =>
  build([
    { target: kernel, pairs: [] },
    { target, pairs: [pair(source, source.replace(from, to))] },
  ]);
const externals = ({ symbols }: ReturnType<typeof build>) =>
  symbols.flatMap((symbol) => (symbol.kind === 'external' ? [`${symbol.object} ${symbol.name}`] : [])).sort();

describe('a module as a target', () => {
  it('is linked, so that its functions are held against what is compiled, and found behind the start of its text', () => {
    const [f] = target.symbolsNamed('f');
    expect(f?.address).toBe(image.findAll('f')[0]?.textOffset);
    const patch = changed(A, 'first text', 'other text');
    expect(
      patch.manifest.objects.map(({ name, functions }) => [name, functions.map((fn) => fn.name)]),
    ).toEqual([
      ['vmlinux', []],
      ['mod', ['f']],
    ]);
    const [fn] = patch.manifest.objects[1]?.functions ?? [];
    expect(Number(fn?.old.address)).toBe(f?.address);
    expect(patch.manifest.objects[1]?.identity).toEqual({ kind: 'buildId', hex: image.buildId });
    expect(patch.manifest.notes[0]).toContain('7 functions');
  });

  it('differs from what another source is compiled to', () => {
    const other = A.replace('n * words', 'n + words');
    expect(() => build([{ target, pairs: [pair(other, other.replace('first text', 'x'))] }])).toThrow(
      'helper differs at offset',
    );
  });

  it('refers to its own symbols, the kernel’s, and what other modules export', () => {
    const patch = changed(A, 'helper(n)', 'helper(count) + exported(n) + kernel_twice(n)');
    expect(externals(patch)).toEqual([
      ...[
        'dep exported',
        'mod count',
        'mod helper',
        'mod in_other_file',
        'vmlinux _printk',
        'vmlinux kernel_twice',
      ],
    ]);
    expect(patch.manifest.objects[0]?.symbols.map(({ name }) => name)).toEqual(['_printk', 'kernel_twice']);
  });

  it.each([
    ['hidden(n)', 'refers to hidden, which neither mod nor the kernel has, and no module exports'],
    ['kernel_secret(n)', 'refers to kernel_secret'],
    ['starts(n)', 'starts is init code or data of mod'],
  ])('is refused when it refers to %s', (call, message) => {
    expect(() => changed(A, 'helper(n)', `helper(n) + ${call}`)).toThrow(message);
  });

  it('is refused for a name that a loaded module has twice, but for copies that do as well', () => {
    expect(() => changed(A, 'second text', 'x')).toThrow('mod has several symbols same');
    expect(() => changed(A, 'n + count', 'n + 2 * count')).toThrow('mod has several symbols same');
    const patch = changed(A, 'third text', 'x');
    expect(externals(patch)).toEqual(['vmlinux _printk']);
    expect(patch.manifest.objects[1]?.functions.map(({ name }) => name)).toEqual(['says']);
  });

  it('refuses init code', () => {
    expect(() => changed(A, 'n * 7', 'n * 8')).toThrow('run only at start: starts');
  });

  it('defines in one of its files what another one uses', () => {
    const patch = build([
      {
        target,
        pairs: [
          pair(
            A,
            A.replace('helper(n) +', 'helper(n) + brand_new(n) +').replace(
              'static',
              'int brand_new(int); static',
            ),
          ),
          pair(B, `${B}int brand_new(int n) { return n + 5; }`),
        ],
      },
    ]);
    const used = patch.sections.flatMap(({ relocations }) =>
      relocations.map((r) => patch.symbols[r.symbolIndex]),
    );
    expect(used.filter((symbol) => symbol?.kind === 'external' && symbol.object === '*')).toEqual([]);
    expect(used.some((symbol) => symbol?.name === '.Lsection.1.' || symbol?.name === 'brand_new')).toBe(true);
    expect(patch.manifest.newFunctions).toEqual(['brand_new']);
  });

  it('is one patch with others, each for itself', () => {
    const C = 'int exported(int n) { return n; } int hidden(int n) { return n + 1; }';
    const patch = build([
      { target: kernel, pairs: [] },
      { target, pairs: [pair(A, A.replace('first text', 'x'))] },
      { target: modules[1]?.target as TargetModel, pairs: [pair(C, C.replace('n + 1', 'n + 2'))] },
    ]);
    const { objects } = patch.manifest;
    expect(objects.map(({ name }) => name)).toEqual(['vmlinux', 'mod', 'dep']);
    const parts = objects.slice(1).map((object) => [...sectionsFor(patch, object)]);
    expect(parts[0]?.filter((index) => parts[1]?.includes(index))).toEqual([]);
  });

  it('is told to be damaged by a relocation that no kernel applies', () => {
    const broken = module('broken', [
      'extern int far; int f(void) { return *(int *)((char *)&far + 3); } __thread int t; int g(void) { return t; }',
    ]);
    expect(() => moduleTarget(broken, { kernel, modules: [] })).toThrow(
      /relocations R_X86_64_\w+, which no kernel applies/,
    );
  });
});

describe('modulesOfCommand', () => {
  const command = (flags: string) =>
    `cmd_fs/a.o := gcc-12 -O2 ${flags} -c -o fs/a.o fs/a.c\n\nsource_fs/a.o := fs/a.c\n`;
  it.each([
    [
      `-DKBUILD_MODFILE='"fs/a"' -DKBUILD_BASENAME='"a"' -DKBUILD_MODNAME='"a"' -D__KBUILD_MODNAME=kmod_a`,
      [],
    ],
    [
      `-DMODULE -DKBUILD_BASENAME='"a"' -DKBUILD_MODNAME='"some_module"' -D__KBUILD_MODNAME=kmod_some_module`,
      ['some_module'],
    ],
    [`-DMODULE -DKBUILD_MODNAME='"one:two"' -D__KBUILD_MODNAME=kmod_one_two`, ['one', 'two']],
    ['-DMODULES_ARE_ELF', []],
  ])('reads %s', (flags, expected) => {
    expect(modulesOfCommand(command(flags))).toEqual(expected);
  });
});
