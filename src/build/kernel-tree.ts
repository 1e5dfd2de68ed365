import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, delimiter, dirname, join } from 'node:path';
import { LivegraftError } from '../base/errors.js';

/** What a kernel compiles like, besides its own flags. */
const FLAGS = [
  '-ffunction-sections',
  '-fdata-sections',
  // Livegraft walks new code by .eh_frame; it changes no instruction, which the proof would show.
  '-fasynchronous-unwind-tables',
  '-gdwarf-4',
];

/** Links to everything in a source tree, and copies of the files that will change: the tree has 80,000 files. */
export function linkTree(sourceDir: string, directory: string, changed: readonly string[]): void {
  const folders = new Set(['']);
  for (const path of changed)
    for (let folder = dirname(path); folder !== '.'; folder = dirname(folder)) folders.add(folder);
  const isChanged = new Set(changed);
  for (const folder of [...folders].sort()) {
    mkdirSync(join(directory, folder), { recursive: true });
    for (const name of readdirSync(join(sourceDir, folder))) {
      const path = join(folder, name);
      if (folders.has(path)) continue;
      if (isChanged.has(path)) copyFileSync(join(sourceDir, path), join(directory, path));
      else symlinkSync(join(sourceDir, path), join(directory, path));
    }
  }
}

/** An object that kbuild made. */
export interface KernelObject {
  /** Where it lies. */
  readonly path: string;
  /** The modules that it is a part of; none for built-in code. */
  readonly modules: readonly string[];
}

/**
 * The modules that kbuild compiled an object for, by its record of the command (`.NAME.o.cmd`): several are separated by colons
 * (scripts/Makefile.lib, `modname`).
 */
export function modulesOfCommand(command: string): readonly string[] {
  const [line = ''] = command.split('\n');
  if (!/\s-DMODULE(?:\s|$)/.test(line)) return [];
  return /-DKBUILD_MODNAME='?\\?"([^"\\]+)/.exec(line)?.[1]?.split(':') ?? [];
}

/**
 * Compiles single files of a kernel with kbuild, out of a linked source tree, against a prepared build folder (the one that
 * modules are built against). Only the asked objects are made: configuration, generated headers and tools are there.
 */
export class KernelTree {
  readonly #sourceDir: string;
  readonly #objectDir: string;
  readonly #compiler: string;
  readonly #assemblerDir: string;
  readonly #includeDir: string;

  /** `includeDir` has the headers for patch code. */
  constructor(sourceDir: string, buildDir: string, work: string, compiler: string, includeDir: string) {
    this.#includeDir = includeDir;
    this.#sourceDir = sourceDir;
    this.#objectDir = join(work, 'objects');
    this.#assemblerDir = join(work, 'bin');
    this.#compiler = compiler;
    this.#prepare(buildDir);
  }

  #prepare(buildDir: string): void {
    for (const needed of ['.config', 'include/config/auto.conf', 'include/generated/autoconf.h', 'scripts']) {
      if (existsSync(join(buildDir, needed))) continue;
      throw new LivegraftError('headers-incomplete', `${buildDir} has no ${needed}`, {
        remedy: 'give the folder that modules are built against as --headers: /lib/modules/RELEASE/build',
        details: { path: buildDir },
      });
    }
    const link = (path: string) => {
      if (!existsSync(join(buildDir, path))) return;
      mkdirSync(join(this.#objectDir, dirname(path)), { recursive: true });
      symlinkSync(realpathSync(join(buildDir, path)), join(this.#objectDir, path));
    };
    for (const path of ['scripts', 'tools', 'include/generated', 'Module.symvers', '.kernelvariables'])
      link(path);
    link('arch/x86/include/generated');
    mkdirSync(join(this.#objectDir, 'include/config'), { recursive: true });
    for (const path of ['.config', 'include/config/auto.conf', 'include/config/kernel.release']) {
      if (existsSync(join(buildDir, path))) copyFileSync(join(buildDir, path), join(this.#objectDir, path));
    }
    // Newer than the configuration: kbuild would make them again otherwise, with tools that are not there.
    const now = new Date();
    writeFileSync(join(this.#objectDir, 'include/config/auto.conf.cmd'), '');
    utimesSync(join(this.#objectDir, '.config'), now, new Date(now.getTime() - 10_000));
    for (const path of ['include/config/auto.conf', 'include/config/auto.conf.cmd'])
      utimesSync(join(this.#objectDir, path), now, now);
    mkdirSync(this.#assemblerDir, { recursive: true });
    writeFileSync(join(this.#assemblerDir, 'as'), assemblerScript(this.#compiler));
    chmodSync(join(this.#assemblerDir, 'as'), 0o755);
  }

  /** Compiles objects (paths in the tree, `fs/proc/cmdline.o`) into a folder; returns each one by its path. */
  compile(
    objects: readonly string[],
    phase: 'original' | 'patched',
    folder: string,
  ): ReadonlyMap<string, KernelObject> {
    for (const object of objects) rmSync(join(this.#objectDir, object), { force: true });
    const { status, stdout, stderr, error } = spawnSync(
      'make',
      [
        '-f',
        join(this.#sourceDir, 'Makefile'),
        // Everything that it would make is in the build folder.
        ...['-o', 'prepare'],
        `CC=${this.#compiler}`,
        `KCFLAGS=${FLAGS.join(' ')} -B${this.#assemblerDir}/`,
        ...objects,
      ],
      {
        cwd: this.#objectDir,
        encoding: 'utf8',
        maxBuffer: 2 ** 28,
        env: {
          ...process.env,
          KBUILD_OUTPUT: '',
          MAKEFLAGS: '',
          CPATH: [process.env.CPATH, this.#includeDir].filter(Boolean).join(delimiter),
        },
      },
    );
    if (error !== undefined || status !== 0) {
      const tail = `${stdout ?? ''}${stderr ?? ''}`.trimEnd().split('\n').slice(-15).join('\n');
      throw new LivegraftError(
        'build-failed',
        `kbuild without ${phase === 'original' ? 'the diff' : 'success, with the diff'}:\n${error?.message ?? tail}`,
        {
          remedy:
            'the source must be the one that the headers belong to; make and the compiler must be there',
          details: { phase },
        },
      );
    }
    mkdirSync(folder, { recursive: true });
    const made = new Map<string, KernelObject>();
    for (const object of objects) {
      const path = join(folder, `${made.size}-${basename(object)}`);
      copyFileSync(join(this.#objectDir, object), path);
      const command = join(this.#objectDir, dirname(object), `.${basename(object)}.cmd`);
      made.set(object, { path, modules: modulesOfCommand(readFileSync(command, 'utf8')) });
    }
    return made;
  }
}

/**
 * Prepares assembly for patches. Places that a patch has to rewrite get five bytes, enough for a jump: those of jump labels the
 * long form of theirs, and `ud2` of the bug table a nop of three bytes in front. Functions that the source puts into a
 * section by name (`__sched`) get a section each. The proof reads nops and either form of a jump alike.
 */
function assemblerScript(compiler: string): string {
  return `#!/bin/sh
real=$(env -u COMPILER_PATH ${compiler} -print-prog-name=as)
for argument in "$@"; do
  case $argument in
    *.s) awk '
      { sub(/^[ \\t]*1:[ \\t]*jmp[ \\t]/, "1: {disp32} jmp ") }
      /^[ \\t]*1:[ \\t]*\\.byte 0x0f, 0x0b[ \\t]*;?[ \\t]*$/ { print ".byte 0x0f,0x1f,0x00"; print "1: .byte 0x0f,0x0b"; next }
      /^\\t\\.(section|text|data|bss)/ && !/__mcount_loc/ {
        base = ""
        if ($2 ~ /^\\.(sched|spinlock|ref|kprobes|cpuidle)\\.text(,|$)/) { base = $2; sub(/,.*/, "", base) }
      }
      base != "" && /^\\t\\.type\\t.*, @function/ {
        name = $2; sub(/,$/, "", name)
        print "\\t.section\\t" base "." name ",\\"ax\\",@progbits"; print "\\t.p2align 4"
      }
      { print }' "$argument" > "$argument.livegraft" && mv "$argument.livegraft" "$argument" ;;
  esac
done
exec "$real" "$@"
`;
}
