import { spawnSync } from 'node:child_process';
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import { LivegraftError } from '../base/errors.js';

/** An object file as one compiler call wrote it. */
export interface CapturedObject {
  /** Our copy. */
  readonly path: string;
  /** Compiler, flags and source, for people. */
  readonly commandLine: string;
}

const COMPILERS = ['cc', 'gcc', 'c99', 'c++', 'g++', 'clang', 'clang++'];
const SECTION_FLAGS = '-ffunction-sections -fdata-sections';

/**
 * Stands in for the compilers on PATH: passes every call on, adds per-function and per-data sections to compilations,
 * and keeps a copy of each object with the call that made it.
 */
export class CompilerCapture {
  readonly #folder: string;
  readonly #command: readonly string[];
  readonly #directory: string;

  constructor(folder: string, command: readonly string[], directory: string) {
    this.#folder = folder;
    this.#command = command;
    this.#directory = directory;
    const bin = join(folder, 'bin');
    mkdirSync(bin, { recursive: true });
    for (const name of COMPILERS) {
      const real = findOnPath(name);
      if (real === undefined) continue;
      writeFileSync(join(bin, name), wrapperScript(real));
      chmodSync(join(bin, name), 0o755);
    }
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
        PATH: `${join(this.#folder, 'bin')}${delimiter}${process.env.PATH ?? ''}`,
        LIVEGRAFT_CAPTURE: captured,
        // A compiler cache would answer with objects that our flags are not in.
        CCACHE_DISABLE: '1',
      },
    });
    if (result.error !== undefined || result.status !== 0) {
      const tail = `${result.stdout ?? ''}${result.stderr ?? ''}`.trimEnd().split('\n').slice(-15).join('\n');
      const how = result.error === undefined ? `ended with status ${result.status}` : result.error.message;
      throw new LivegraftError(
        'build-failed',
        `the build ${phase === 'original' ? 'without' : 'with'} the diff ${how}:\n${tail}`,
        {
          remedy: 'the command behind -- must build the tree as it is; try it by hand in a copy',
          details: { phase },
        },
      );
    }
    const objects = readCaptured(captured, this.#directory);
    if (objects.size === 0 && phase === 'original') {
      throw new LivegraftError('nothing-captured', 'the build called no compiler that livegraft could see', {
        remedy: 'let it call the compiler by name (for example -- make CC=gcc), not by an absolute path',
      });
    }
    return objects;
  }
}

function findOnPath(name: string): string | undefined {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {}
  }
  return undefined;
}

/** Records are numbered by the shell's process id and a counter in the name of the object: unique within one build. */
function wrapperScript(real: string): string {
  return `#!/bin/sh
compile=no output= previous= source=
for argument in "$@"; do
  case $previous in -o) output=$argument ;; esac
  case $argument in
    -c) compile=yes ;;
    *.c|*.cc|*.cpp|*.cxx|*.C) source=$argument ;;
  esac
  previous=$argument
done
if [ "$compile" = no ] || [ -z "$source" ]; then
  exec ${quote(real)} "$@"
fi
if [ -z "$output" ]; then
  output=\${source##*/}
  output=\${output%.*}.o
fi
${quote(real)} "$@" ${SECTION_FLAGS} || exit $?
record=$LIVEGRAFT_CAPTURE/$$
while [ -e "$record.o" ]; do record=\${record}x; done
cp "$output" "$record.o" || exit $?
case $output in /*) ;; *) output=$PWD/$output ;; esac
printf '%s\\n' "$output" "${real} $*" > "$record.txt"
`;
}

function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function readCaptured(folder: string, directory: string): Map<string, CapturedObject> {
  const objects = new Map<string, CapturedObject>();
  for (const name of readdirSync(folder).sort()) {
    if (!name.endsWith('.txt')) continue;
    const path = join(folder, name.replace(/\.txt$/, '.o'));
    if (!existsSync(path)) continue;
    const [output = '', ...rest] = readFileSync(join(folder, name), 'utf8').trimEnd().split('\n');
    objects.set(output.replace(`${directory}/`, ''), { path, commandLine: rest.join('\n') });
  }
  return objects;
}
