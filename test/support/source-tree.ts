import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll } from 'vitest';
import { sha256 } from '../../src/build/from-objects.js';
import { main } from '../../src/cli/main.js';
import type { Patch } from '../../src/patch/content.js';
import { parsePatch } from '../../src/patch/file.js';
import type { Run } from './live.js';

/** Small source trees, built and changed in the test: the corpus of the builder's tests. */

export type Files = Readonly<Record<string, string>>;

export interface TreeOptions {
  /** Path to text. Without a Makefile, all C and C++ files are compiled and linked into `prog`. */
  readonly files: Files;
  /** Files as they are behind the diff; only those that change. An empty text removes a file. */
  readonly change: Files;
  readonly cc?: string;
  readonly cflags?: string;
  readonly ldflags?: string;
  /** What the target is built with; default: `make`. */
  readonly command?: readonly string[];
  /** What `livegraft build` is given behind `--`; default: the same. */
  readonly rebuild?: readonly string[];
  /** The file that is patched, in the tree. */
  readonly target?: string;
}

export interface Tree {
  readonly source: string;
  readonly diff: string;
  readonly target: string;
  readonly command: readonly string[];
}

const root = mkdtempSync(join(tmpdir(), 'livegraft-trees-'));
let count = 0;
afterAll(() => rmSync(root, { recursive: true, force: true }));

export function run(command: string, args: readonly string[], cwd: string): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} in ${cwd}: ${stdout}${stderr}`);
  return stdout;
}

/** Writes and builds a tree, and makes the diff. */
export function makeTree(options: TreeOptions): Tree {
  const { cc = 'gcc', cflags = '', ldflags = '', command = ['make'], target = 'prog' } = options;
  const folder = join(root, String(count++));
  const sources = Object.keys(options.files).filter((path) => /\.(c|cc)$/.test(path));
  const objects = sources.map((path) => path.replace(/\.cc?$/, '.o'));
  const headers = Object.keys(options.files).filter((path) => path.endsWith('.h'));
  const makefile = `CC = ${cc}
CFLAGS = -O2 ${cflags}
prog: ${objects.join(' ')}
\t$(CC) -o $@ ${objects.join(' ')} -Wl,--build-id ${ldflags}
%.o: %.c ${headers.join(' ')}
\t$(CC) $(CFLAGS) -c -o $@ $<
%.o: %.cc ${headers.join(' ')}
\t$(CC) $(CFLAGS) -c -o $@ $<
`;
  const files: Files = { Makefile: makefile, ...options.files };
  const write = (base: string, all: Files) => {
    for (const [path, text] of Object.entries(all)) {
      mkdirSync(dirname(join(base, path)), { recursive: true });
      writeFileSync(join(base, path), text);
    }
  };
  const after: Record<string, string> = { ...files, ...options.change };
  for (const [path, text] of Object.entries(after)) if (text === '') delete after[path];
  write(join(folder, 'a'), files);
  write(join(folder, 'b'), after);
  const diff = join(folder, 'fix.patch');
  const { stdout } = spawnSync('diff', ['-ruN', 'a', 'b'], { cwd: folder, encoding: 'utf8' });
  // New and removed files as git and diff -N with a date mark them.
  writeFileSync(diff, stdout.replaceAll(/^(---|\+\+\+) \S+\t1970-01-01 .*$/gm, '$1 /dev/null'));
  const source = join(folder, 'a');
  run(command[0] as string, command.slice(1), source);
  return { source, diff, target: join(source, target), command: options.rebuild ?? command };
}

/** Runs the command line in this process, which saves its start; for all that traces no process. */
export async function cli(...args: readonly string[]): Promise<Run> {
  let [stdout, stderr] = ['', ''];
  const code = await main(args, {
    out: (text) => {
      stdout += text;
    },
    err: (text) => {
      stderr += text;
    },
    isTerminal: false,
    columns: 80,
    errorColumns: undefined,
    rows: 24,
    noColor: true,
    onInterrupt: () => () => {},
    onReverse: () => () => {},
  });
  const lines = args.includes('--json') ? stdout.split('\n').filter((line) => line !== '') : [];
  return { code, stdout, stderr, lines: lines.map((line) => JSON.parse(line) as Record<string, unknown>) };
}

/** Runs `livegraft build --json` on a tree. */
export async function buildPatch(
  tree: Tree,
  ...more: readonly string[]
): Promise<{ run: Run; output: string }> {
  const output = `${tree.diff}.lgp`;
  const { source, diff, target, command } = tree;
  const args = [
    '--source',
    source,
    '--diff',
    diff,
    '--target',
    target,
    '-o',
    output,
    ...more,
    '--',
    ...command,
  ];
  return { run: await cli('--json', 'build', ...args), output };
}

/** Builds, and expects a patch. */
export async function expectPatch(
  tree: Tree,
  ...more: readonly string[]
): Promise<{ patch: Patch; output: string }> {
  const { run: result, output } = await buildPatch(tree, ...more);
  if (result.code !== 0) throw new Error(`${result.stdout}${result.stderr}`);
  return { patch: parsePatch(readFileSync(output), output, sha256), output };
}

/** Builds, and expects one refusal: its text, with nothing written. */
export async function expectRefusal(tree: Tree, code: string, ...more: readonly string[]): Promise<string> {
  const { run: result, output } = await buildPatch(tree, ...more);
  return refusalOf(result, code, output);
}

export function refusalOf(result: Run, code: string, output: string): string {
  const errors = result.lines.filter((line) => line.event === 'error');
  const [error] = errors;
  if (errors.length !== 1 || error?.code !== code || result.code !== 1) {
    throw new Error(`expected ${code} alone, got exit ${result.code}: ${result.stdout}${result.stderr}`);
  }
  if (existsSync(output)) throw new Error(`${output} was left behind`);
  if (typeof error.remedy !== 'string' || error.remedy === '')
    throw new Error(`${code} does not say what to do`);
  return String(error.message);
}

export function replacedBy(patch: Patch): string[] {
  return patch.manifest.objects.flatMap((object) => object.functions.map((fn) => fn.name)).sort();
}

/** Where `nm` says that a symbol is, by address; several of one name in ascending order. */
export function addressesOf(target: string, name: string): string[] {
  return run('nm', [target], '/')
    .split('\n')
    .flatMap((line) => {
      const match = /^([0-9a-f]+) \S (.*)$/.exec(line);
      return match?.[2] === name ? [`0x${BigInt(`0x${match[1]}`).toString(16)}`] : [];
    })
    .sort();
}
