import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  readFileSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { LivegraftError } from '../base/errors.js';

/** A run of added and removed lines. */
interface Change {
  /** The first line behind it, in the old file and in the new one, from 1. */
  readonly oldNext: number;
  readonly newNext: number;
}

interface ChangedFile {
  readonly path: string;
  readonly changes: readonly Change[];
  /** The diff makes it, or removes it; else it is there before and after. */
  readonly existence: 'kept' | 'added' | 'removed';
}

/** How a workspace comes by its files: all of them, or links to those that the diff leaves alone. */
export type CopyTree = (sourceDir: string, directory: string, changed: readonly string[]) => void;

const copyWhole: CopyTree = (sourceDir, directory) =>
  cpSync(sourceDir, directory, {
    recursive: true,
    preserveTimestamps: true,
    verbatimSymlinks: true,
    // The sockets and pipes of a program that runs there are no sources, and can't be copied.
    filter(path) {
      const stat = lstatSync(path);
      return stat.isFile() || stat.isDirectory() || stat.isSymbolicLink();
    },
  });

/** A private copy of a source tree, and the diff that is applied to it. */
export class SourceWorkspace {
  readonly directory: string;
  keepsLineNumbers = false;
  readonly #diffPath: string;
  readonly #strip: number;
  readonly #files: readonly ChangedFile[];

  constructor(sourceDir: string, diffPath: string, directory: string, copyTree: CopyTree = copyWhole) {
    if (!existsSync(sourceDir) || !statSync(sourceDir).isDirectory()) {
      throw new LivegraftError('no-source', `${sourceDir} is no directory`, {
        remedy: 'give the source tree as --source',
      });
    }
    let diff: string;
    try {
      diff = readFileSync(diffPath, 'utf8');
    } catch (cause) {
      throw new LivegraftError('diff-unreadable', `${diffPath} can't be read: ${(cause as Error).message}`, {
        remedy: 'give a unified diff as --diff',
        cause,
      });
    }
    this.directory = directory;
    this.#diffPath = diffPath;
    const files = parseDiff(diff);
    if (files.length === 0) {
      throw new LivegraftError('diff-empty', `${diffPath} holds no unified diff`, {
        remedy: 'make one with diff -u or git diff',
      });
    }
    // a/src/x.c with -p1, src/x.c with -p0: whichever names files that are there.
    const existing = files.filter((f) => f.existence !== 'added');
    const fits = (n: number) => existing.every((f) => isFile(join(sourceDir, stripped(f.path, n))));
    const strip = files.some((f) => leadsAway(f.path)) ? undefined : [1, 0, 2].find(fits);
    if (strip === undefined) {
      const names = files.map((f) => f.path).join(', ');
      throw new LivegraftError(
        'diff-does-not-fit',
        `${diffPath} changes files that are not in ${sourceDir}: ${names}`,
        {
          remedy: 'give the directory that the diff was made in as --source',
          details: { files: names },
        },
      );
    }
    this.#strip = strip;
    this.#files = files.map((f) => ({ ...f, path: stripped(f.path, strip) }));
    const assembly = this.#files.find((f) => /\.[sS]$/.test(f.path));
    if (assembly !== undefined) {
      throw new LivegraftError(
        'assembly-changed',
        `the diff changes ${assembly.path}: assembly has no functions that could be compared`,
        {
          remedy: 'patch the functions that call it',
        },
      );
    }
    copyTree(
      sourceDir,
      directory,
      existing.map((f) => stripped(f.path, strip)),
    );
  }

  /** Paths of the files that the diff changes, adds or removes, in the tree. */
  get changedFiles(): readonly string[] {
    return this.#files.map((file) => file.path);
  }

  /** Makes the build see the files as changed, so that what depends on them is compiled also without the diff. */
  touchChangedFiles(): void {
    const now = new Date();
    for (const { path, existence } of this.#files) {
      if (existence !== 'added') utimesSync(join(this.directory, path), now, now);
    }
  }

  /** Applies the diff; returns the files it changes. Lines behind a hunk keep their numbers by #line directives. */
  applyDiff(): readonly string[] {
    const result = spawnSync('patch', [`-p${this.#strip}`, '--batch', '--forward', '-i', this.#diffPath], {
      cwd: this.directory,
      encoding: 'utf8',
    });
    if (result.error !== undefined || result.status !== 0) {
      const text = result.error?.message ?? `${result.stdout}${result.stderr}`.trim();
      throw new LivegraftError(
        'diff-does-not-apply',
        `${this.#diffPath} does not apply to the tree:\n${text}`,
        {
          remedy: 'the tree must be the one that the target was built from, without the change',
        },
      );
    }
    const future = new Date(Date.now() + 2000);
    for (const file of this.#files) {
      if (file.existence !== 'kept') continue;
      const path = join(this.directory, file.path);
      copyFileSync(path, `${path}.livegraft-plain`);
      const text = readFileSync(path, 'utf8');
      const numbered = keepLineNumbers(text, file);
      if (numbered !== text) this.keepsLineNumbers = true;
      writeFileSync(path, numbered);
      // Newer than the objects of the first build, whatever the file system's clock resolves.
      utimesSync(path, future, future);
    }
    return this.#files.map((f) => f.path);
  }

  dropLineDirectives(): void {
    this.keepsLineNumbers = false;
    const future = new Date(Date.now() + 4000);
    for (const { path, existence } of this.#files) {
      if (existence !== 'kept') continue;
      copyFileSync(join(this.directory, `${path}.livegraft-plain`), join(this.directory, path));
      utimesSync(join(this.directory, path), future, future);
    }
  }
}

function isFile(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false })?.isFile() === true;
  } catch {
    // A name that is too long for one, or behind what may not be looked at.
    return false;
  }
}

/** Whether a file of a diff is in no tree: its name could not be one, or leads out of the tree. */
function leadsAway(path: string): boolean {
  return path.includes('\0') || path.split('/').includes('..');
}

function stripped(path: string, count: number): string {
  return path.split('/').slice(count).join('/');
}

/** The files of a unified diff, and where lines change in them. */
function parseDiff(diff: string): ChangedFile[] {
  const files: { path: string; changes: Change[]; existence: ChangedFile['existence'] }[] = [];
  const lines = diff.split('\n');
  for (let i = 0; i < lines.length; ) {
    const line = lines[i++] as string;
    const next = lines[i] ?? '';
    if (line.startsWith('--- ') && next.startsWith('+++ ')) {
      const name = (text: string) => (text.slice(4).split('\t')[0] as string).trim();
      const existence =
        name(line) === '/dev/null' ? 'added' : name(next) === '/dev/null' ? 'removed' : 'kept';
      files.push({ path: existence === 'removed' ? name(line) : name(next), changes: [], existence });
      i++;
      continue;
    }
    const hunk = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@/.exec(line);
    const file = files[files.length - 1];
    if (hunk === null || file === undefined) continue;
    const [oldStart, oldLines, newStart, newLines] = hunk.slice(1).map((text) => Number(text ?? 1)) as [
      number,
      number,
      number,
      number,
    ];
    // An empty side is stated as the line before it.
    let oldLine = oldLines === 0 ? oldStart + 1 : oldStart;
    let newLine = newLines === 0 ? newStart + 1 : newStart;
    const [oldEnd, newEnd] = [oldLine + oldLines, newLine + newLines];
    let isChange = false;
    while (i < lines.length && (oldLine < oldEnd || newLine < newEnd)) {
      const kind = (lines[i++] as string)[0];
      if (kind === '\\') continue;
      if (isChange && kind !== '+' && kind !== '-') file.changes.push({ oldNext: oldLine, newNext: newLine });
      isChange = kind === '+' || kind === '-';
      if (kind !== '+') oldLine++;
      if (kind !== '-') newLine++;
    }
    if (isChange) file.changes.push({ oldNext: oldLine, newNext: newLine });
  }
  return files;
}

/**
 * Code that uses `__LINE__` (assertions do) would change in every function behind an added line. A directive behind
 * each change gives the lines that follow their old numbers; none is put where a line is continued.
 */
function keepLineNumbers(text: string, file: ChangedFile): string {
  if (!/\.(c|cc|cpp|cxx|h|hh|hpp|inc)$/.test(file.path)) return text;
  const lines = text.split('\n');
  let known = 0;
  let inserted = 0;
  for (const { oldNext, newNext } of file.changes) {
    const at = newNext - 1 + inserted;
    // The numbers behind it are right already when as many lines were removed as added.
    if (newNext - oldNext === known) continue;
    if (at <= 0 || at >= lines.length || (lines[at - 1] as string).endsWith('\\')) continue;
    lines.splice(at, 0, `#line ${oldNext}`);
    inserted++;
    known = newNext - oldNext;
  }
  return lines.join('\n');
}
