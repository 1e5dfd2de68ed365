import { spawnSync } from 'node:child_process';
import { copyFileSync, cpSync, existsSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LivegraftError } from '../base/errors.js';

interface Hunk {
  /** First line of the hunk in the old file and the number of lines there; the same in the new one. */
  readonly oldStart: number;
  readonly oldLines: number;
  readonly newStart: number;
  readonly newLines: number;
}

interface ChangedFile {
  readonly path: string;
  readonly hunks: readonly Hunk[];
}

/** A private copy of a source tree, and the diff that is applied to it. */
export class SourceWorkspace {
  readonly directory: string;
  keepsLineNumbers = false;
  readonly #diffPath: string;
  readonly #strip: number;
  readonly #files: readonly ChangedFile[];

  constructor(sourceDir: string, diffPath: string, directory: string) {
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
    const strip = [1, 0, 2].find((n) => files.every((f) => existsSync(join(sourceDir, stripped(f.path, n)))));
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
    cpSync(sourceDir, directory, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true });
  }

  /** Makes the build see the files as changed, so that what depends on them is compiled also without the diff. */
  touchChangedFiles(): void {
    const now = new Date();
    for (const { path } of this.#files) utimesSync(join(this.directory, path), now, now);
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
    for (const { path } of this.#files) {
      copyFileSync(join(this.directory, `${path}.livegraft-plain`), join(this.directory, path));
      utimesSync(join(this.directory, path), future, future);
    }
  }
}

function stripped(path: string, count: number): string {
  return path.split('/').slice(count).join('/');
}

/** The files and hunks of a unified diff. */
function parseDiff(diff: string): ChangedFile[] {
  const files: { path: string; hunks: Hunk[] }[] = [];
  const lines = diff.split('\n');
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i] as string;
    const next = lines[i + 1] ?? '';
    if (line.startsWith('--- ') && next.startsWith('+++ ')) {
      const name = (text: string) => (text.slice(4).split('\t')[0] as string).trim();
      const path = name(next) === '/dev/null' ? name(line) : name(next);
      files.push({ path, hunks: [] });
      i++;
      continue;
    }
    const hunk = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@/.exec(line);
    if (hunk === null) continue;
    files[files.length - 1]?.hunks.push({
      oldStart: Number(hunk[1]),
      oldLines: Number(hunk[2] ?? 1),
      newStart: Number(hunk[3]),
      newLines: Number(hunk[4] ?? 1),
    });
  }
  return files;
}

/**
 * Code that uses `__LINE__` (assertions do) would change in every function behind an added line. A directive after
 * each hunk gives the lines that follow their old numbers; none is put where a line is continued.
 */
function keepLineNumbers(text: string, file: ChangedFile): string {
  if (!/\.(c|cc|cpp|cxx|h|hh|hpp|inc)$/.test(file.path)) return text;
  const lines = text.split('\n');
  for (const hunk of file.hunks.toReversed()) {
    if (hunk.oldLines === hunk.newLines) continue;
    const at = hunk.newStart - 1 + hunk.newLines;
    if (at <= 0 || at >= lines.length || (lines[at - 1] as string).endsWith('\\')) continue;
    lines.splice(at, 0, `#line ${hunk.oldStart + hunk.oldLines}`);
  }
  return lines.join('\n');
}
