import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { livegraft, ROOT } from '../test/support/live.js';

/** Support of the benchmarks: compiling what is measured, medians, and the one JSON object at the end. */

export interface Spread {
  readonly median: number;
  readonly max: number;
}

export function medianOf(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return rounded(sorted[Math.floor(sorted.length / 2)] ?? Number.NaN);
}

export function spread(values: readonly number[]): Spread {
  return { median: medianOf(values), max: rounded(Math.max(...values)) };
}

function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}

export function compileC(output: string, source: string, ...flags: readonly string[]): string {
  const args = [
    '-O2',
    '-g',
    ...flags.filter((f) => !f.startsWith('-l')),
    '-o',
    output,
    join(ROOT, 'bench', source),
  ];
  const { status, stderr } = spawnSync('gcc', [...args, ...flags.filter((f) => f.startsWith('-l'))], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(stderr);
  return output;
}

/** A program of `bench/`, and the patch that makes it what it is with `-DPATCHED`. */
export function compileWithPatch(folder: string, source: string): { program: string; patch: string } {
  const path = (name: string) => join(folder, `${name}-${source}`);
  const sections = ['-ffunction-sections', '-fdata-sections', '-c'];
  const program = compileC(path('program'), source, '-Wl,--build-id', '-lpthread');
  const orig = compileC(path('orig.o'), source, ...sections);
  const patched = compileC(path('patched.o'), source, ...sections, '-DPATCHED');
  const patch = path('fix.lgp');
  const built = livegraft('build', '--orig', orig, '--patched', patched, '--target', program, '-o', patch);
  if (built.code !== 0) throw new Error(built.stderr);
  return { program, patch };
}

export async function inFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-bench-'));
  try {
    await work(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * For people a row a line first; the JSON object last. With `--write` the rows also take the place of the table of
 * this benchmark in `bench/README.md`.
 */
export function publish(benchmark: string, rows: readonly object[]): void {
  const machine = {
    cpu: cpus()[0]?.model ?? '?',
    cores: cpus().length,
    kernel: release(),
    node: process.versions.node,
  };
  if (!process.argv.includes('--json'))
    for (const row of rows) process.stdout.write(`${JSON.stringify(row)}\n`);
  if (process.argv.includes('--write')) {
    const path = join(ROOT, 'bench/README.md');
    const [start, end] = [`<!-- ${benchmark} -->\n`, `<!-- end of ${benchmark} -->`];
    const text = readFileSync(path, 'utf8');
    const [from, to] = [text.indexOf(start), text.indexOf(end)];
    if (from < 0 || to < from) throw new Error(`bench/README.md has no place for ${benchmark}`);
    const day = new Date().toISOString().slice(0, 10);
    const taken = `Taken on ${day}: ${machine.cpu}, ${machine.cores} cores, Linux ${machine.kernel}, Node ${machine.node}.`;
    const body = `\n${taken}\n\n${tableOf(rows)}\n`;
    writeFileSync(path, text.slice(0, from + start.length) + body + text.slice(to));
  }
  process.stdout.write(`${JSON.stringify({ machine, rows })}\n`);
}

function tableOf(rows: readonly object[]): string {
  const flat = rows.map((row) => Object.fromEntries(flatten('', row)));
  const columns = [...new Set(flat.flatMap((row) => Object.keys(row)))];
  const line = (cells: readonly unknown[]) => `| ${cells.join(' | ')} |`;
  return [
    line(columns),
    line(columns.map(() => '---')),
    ...flat.map((row) => line(columns.map((column) => row[column] ?? ''))),
  ].join('\n');
}

function flatten(prefix: string, value: object): (readonly [string, unknown])[] {
  return Object.entries(value).flatMap(([key, inner]: [string, unknown]) =>
    typeof inner === 'object' && inner !== null
      ? flatten(`${prefix}${key} `, inner)
      : [[`${prefix}${key}`, inner] as const],
  );
}
