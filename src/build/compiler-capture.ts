import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, delimiter, join, resolve } from 'node:path';
import { LivegraftError } from '../base/errors.js';
import { assemblerScript, clangScript, compilerScript } from './compiler-scripts.js';

/** An object file as one compiler call wrote it. */
export interface CapturedObject {
  /** Our copy. */
  readonly path: string;
  /** Compiler, flags and source, for people. */
  readonly commandLine: string;
}

/**
 * Stands between the build and its compilers: adds per-function and per-data sections to compilations and keeps a copy
 * of each object with the call that made it. GCC under any name or path is reached through COMPILER_PATH, where its
 * driver looks for the compiler proper and the assembler; clang, which has both inside, through PATH.
 */
export class CompilerCapture {
  readonly #folder: string;
  readonly #command: readonly string[];
  readonly #directory: string;
  readonly #sourceDir: string;
  readonly #includeDir: string;

  /** The command runs in `directory`, the copy of `sourceDir`; `includeDir` holds headers for the code of patches. */
  constructor(
    folder: string,
    command: readonly string[],
    directory: string,
    sourceDir: string,
    includeDir: string,
  ) {
    this.#folder = folder;
    this.#command = command;
    this.#directory = directory;
    this.#sourceDir = sourceDir;
    this.#includeDir = includeDir;
    // __FILE__ is what the target's build had: the path in the tree itself.
    // Debug information tells how types are laid out; it changes no code (GCC manual, -fcompare-debug).
    const flags = [
      '-ffunction-sections',
      '-fdata-sections',
      '-gdwarf-4',
      `-ffile-prefix-map=${directory}=${resolve(sourceDir)}`,
    ];
    const install = (place: string, name: string, script: string) => {
      mkdirSync(join(folder, place), { recursive: true });
      writeFileSync(join(folder, place, name), script);
      chmodSync(join(folder, place, name), 0o755);
    };
    for (const name of ['cc1', 'cc1plus'])
      install('gcc', name, compilerScript(name, join(folder, 'gcc'), flags));
    install('gcc', 'as', assemblerScript(join(folder, 'gcc')));
    mkdirSync(join(folder, 'bin'), { recursive: true });
    for (const [name, real] of clangsOnPath()) install('bin', name, clangScript(real, flags));
  }

  /** Runs the build; returns what it compiled, by output path. */
  build(phase: 'original' | 'patched'): ReadonlyMap<string, CapturedObject> {
    const captured = join(this.#folder, phase);
    mkdirSync(captured, { recursive: true });
    const [program, ...args] = this.#command;
    const result = spawnSync(program as string, args, {
      cwd: this.#directory,
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
      env: {
        ...process.env,
        // What a shell would say: builds use it to make absolute paths.
        PWD: this.#directory,
        PATH: `${join(this.#folder, 'bin')}${delimiter}${process.env.PATH ?? ''}`,
        COMPILER_PATH: [join(this.#folder, 'gcc'), process.env.COMPILER_PATH].filter(Boolean).join(delimiter),
        LIVEGRAFT_CAPTURE: captured,
        // Searched by GCC and clang behind every -I of the build.
        CPATH: [process.env.CPATH, this.#includeDir].filter(Boolean).join(delimiter),
        // A compiler cache would answer with objects that our flags are not in.
        CCACHE_DISABLE: '1',
        SCCACHE_RECACHE: '1',
      },
    });
    if (result.error !== undefined || result.status !== 0) {
      const tail = `${result.stdout ?? ''}${result.stderr ?? ''}`.trimEnd().split('\n').slice(-15).join('\n');
      const how =
        result.error !== undefined
          ? `could not be started (${result.error.message})`
          : result.signal !== null
            ? `was ended by ${result.signal}`
            : `ended with status ${result.status}`;
      throw new LivegraftError(
        'build-failed',
        `the build ${phase === 'original' ? 'without' : 'with'} the diff ${how}${tail === '' ? ', without a word' : `:\n${tail}`}`,
        {
          remedy: 'the command behind -- must build the tree as it is; try it by hand in a copy',
          details: { phase },
        },
      );
    }
    const objects = this.#readCaptured(captured);
    if (objects.size === 0 && phase === 'original') {
      throw new LivegraftError('nothing-captured', 'the build compiled nothing that livegraft could see', {
        remedy:
          'the command behind -- must compile the changed files with gcc (any path) or with clang (by name); when the build system does not know what depends on them, clean first: -- sh -c "make clean && make"',
      });
    }
    return objects;
  }

  #readCaptured(folder: string): Map<string, CapturedObject> {
    const records = readdirSync(folder)
      .filter((name) => name.endsWith('.txt'))
      .map((name) => ({
        path: join(folder, name),
        time: statSync(join(folder, name), { bigint: true }).mtimeNs,
      }));
    // An object that was compiled twice counts as it was last.
    records.sort((a, b) => Number(a.time - b.time));
    const objects = new Map<string, CapturedObject>();
    for (const record of records) {
      const path = record.path.replace(/\.txt$/, '.o');
      if (!existsSync(path) || statSync(path).size === 0) continue;
      const [output = '', source = '', ...rest] = readFileSync(record.path, 'utf8').trimEnd().split('\n');
      this.#expectInCopy(source);
      objects.set(output.replace(`${this.#directory}/`, ''), { path, commandLine: rest.join('\n') });
    }
    return objects;
  }

  /** A tree that was configured with absolute paths builds itself, not the copy that the diff is applied to. */
  #expectInCopy(source: string): void {
    const original = `${resolve(this.#sourceDir)}/`;
    if (!source.startsWith(original) || source.startsWith(`${this.#directory}/`)) return;
    throw new LivegraftError(
      'build-leaves-copy',
      `the build compiled ${source} instead of its copy: it was configured with absolute paths`,
      {
        remedy:
          'let the command configure a build directory of its own in the copy, for example -- sh -c "cmake -S . -B b && make -C b"',
        details: { source },
      },
    );
  }
}

/** Compilers on PATH that are clang, by any of the usual names. */
function clangsOnPath(): Map<string, string> {
  const found = new Map<string, string>();
  const seen = new Set<string>();
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    let names: string[] = [];
    try {
      names = readdirSync(folder);
    } catch {}
    for (const name of names) {
      if (!/^(.*-)?(cc|c\+\+|c99|c89|clang|clang\+\+)(-[\d.]+)?$/.test(name) || seen.has(name)) continue;
      try {
        const real = basename(realpathSync(join(folder, name)));
        // A compiler cache under a compiler's name would look on PATH for the compiler, and find our script.
        if (/^(s?ccache|distcc|icecc)/.test(real)) continue;
        seen.add(name);
        if (real.includes('clang')) found.set(name, join(folder, name));
      } catch {}
    }
  }
  return found;
}
