import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { LivegraftError } from '../base/errors.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import type { ModuleImage } from '../kernel-image/module-image.js';
import type { CompiledPair } from './compiled-pair.js';
import { type BuildOptions, type BuildResult, buildFromPairs, readObject } from './from-objects.js';
import { expectCompiler } from './kernel-compiler.js';
import { kernelTarget } from './kernel-target.js';
import { type KernelObject, KernelTree, linkTree } from './kernel-tree.js';
import type { PatchSource } from './make-patch.js';
import { expectModuleOf, moduleTarget } from './module-target.js';
import { SourceWorkspace } from './source-workspace.js';
import type { TargetModel } from './target-model.js';

export interface KernelBuildOptions extends Omit<BuildOptions, 'targetPath' | 'debugDirs'> {
  readonly image: KernelImage;
  /** The kernel's source, as the distribution compiled it. */
  readonly sourceDir: string;
  readonly diffPath: string;
  /** The folder that modules are built against; its place on this machine when not given. */
  readonly buildDir: string | undefined;
  /** Files of modules that the diff changes, or that the changed code of others refers to. */
  readonly modules: readonly ModuleImage[];
  /** Objects to compile besides those of the C files that the diff changes: `fs/proc/inode.o`. */
  readonly objects: readonly string[];
  /** Where livegraft.h is. */
  readonly includeDir: string;
}

/**
 * Makes a patch for a kernel from a diff against its source: only the objects of the changed files are compiled, without
 * and with the diff, by the kernel's own compiler and flags. Nothing is written into the source tree.
 */
export function buildFromKernelSource(options: KernelBuildOptions): BuildResult {
  const { image, modules, onEvent } = options;
  for (const module of modules) expectModuleOf(image, module);
  const compiler = expectCompiler(image);
  const buildDir = findBuildDir(options.buildDir, image.release);
  const work = mkdtempSync(join(tmpdir(), 'livegraft-kernel-build-'));
  try {
    onEvent({ kind: 'step', step: 'copy', detail: options.sourceDir });
    const extra = options.objects.map((object) => object.replace(/\.o$/, '.c'));
    const workspace = new SourceWorkspace(
      resolve(options.sourceDir),
      resolve(options.diffPath),
      join(work, 'tree'),
      (from, to, changed) => linkTree(from, to, [...changed, ...extra]),
    );
    const objects = objectsToCompile(workspace.directory, workspace.changedFiles, options.objects);
    const tree = new KernelTree(workspace.directory, buildDir, work, compiler, options.includeDir);
    onEvent({ kind: 'step', step: 'compile', detail: 'without the diff' });
    const original = tree.compile(objects, 'original', join(work, 'original'));
    for (const [object, { modules: names }] of original) expectModuleGiven(object, names, modules);
    const changed = workspace.applyDiff();
    onEvent({ kind: 'step', step: 'compile', detail: `with the diff (${changed.join(', ')})` });
    let patched: ReadonlyMap<string, KernelObject>;
    try {
      patched = tree.compile(objects, 'patched', join(work, 'patched'));
    } catch (error) {
      if (!workspace.keepsLineNumbers) throw error;
      workspace.dropLineDirectives();
      onEvent({
        kind: 'notice',
        text: 'line numbers could not be kept: functions that use __LINE__ count as changed',
      });
      patched = tree.compile(objects, 'patched', join(work, 'patched'));
    }
    const compiled = objects.map((object): CompiledObject => {
      const [before, after] = [original.get(object), patched.get(object)];
      if (before === undefined || after === undefined) throw new Error(`${object} was not compiled twice`);
      const pair = { original: readObject(before.path), patched: readObject(after.path) };
      return { object, modules: before.modules, pair };
    });
    return buildFromPairs(sourcesOf(compiled, image, modules), options);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

interface CompiledObject {
  /** `fs/proc/cmdline.o` */
  readonly object: string;
  /** The modules that it is a part of; none for the kernel itself. */
  readonly modules: readonly string[];
  readonly pair: CompiledPair;
}

/** Rejects `module-needed` for an object of modules none of which is given. */
function expectModuleGiven(object: string, names: readonly string[], modules: readonly ModuleImage[]): void {
  if (names.length === 0 || modules.some(({ name }) => names.includes(name))) return;
  throw new LivegraftError(
    'module-needed',
    `${object} is not in the kernel itself, but in the module ${names.join(' and in ')}`,
    {
      remedy: `give the module's file as --module (unpacked, /lib/modules/RELEASE/kernel/…/${names[0]}.ko)`,
      details: { object, modules: names.join(', ') },
    },
  );
}

/** What belongs to the kernel, which comes first, and to each module. */
function sourcesOf(
  compiled: readonly CompiledObject[],
  image: KernelImage,
  modules: readonly ModuleImage[],
): readonly PatchSource[] {
  const kernel = kernelTarget(image);
  const others: { readonly target: TargetModel; readonly exports: ReadonlySet<string> }[] = [];
  for (const module of modules)
    others.push({ target: moduleTarget(module, { kernel, modules: others }), exports: module.exports });
  return [
    { target: kernel, pairs: compiled.filter((each) => each.modules.length === 0).map(({ pair }) => pair) },
    ...others.map(({ target }) => ({
      target,
      pairs: compiled.filter((each) => each.modules.includes(target.objectName)).map(({ pair }) => pair),
    })),
  ];
}

function findBuildDir(given: string | undefined, release: string): string {
  const places =
    given === undefined ? [`/lib/modules/${release}/build`, `/usr/src/linux-headers-${release}`] : [given];
  const found = places.find((place) => existsSync(place));
  if (found !== undefined) return resolve(found);
  throw new LivegraftError('no-headers', `there is no ${places.join(' nor ')}`, {
    remedy: `install the headers package of ${release} (linux-headers-${release}), or name its folder with --headers`,
    details: { release },
  });
}

/**
 * The objects of the changed C files, or of those beside them that include them. What a changed header changes is not
 * known without a whole build: it must be said.
 */
function objectsToCompile(
  directory: string,
  changedFiles: readonly string[],
  named: readonly string[],
): readonly string[] {
  const headers = changedFiles.filter((path) => !path.endsWith('.c'));
  if (headers.length > 0 && named.length === 0) {
    throw new LivegraftError(
      'header-changed',
      `the diff changes ${headers.join(', ')}: which files include it is not known without building the whole kernel`,
      {
        remedy: 'name all objects that it changes behind --, for example: -- fs/proc/inode.o fs/proc/base.o',
        details: { files: headers.join(', ') },
      },
    );
  }
  const own = changedFiles
    .filter((path) => path.endsWith('.c'))
    .flatMap((path) => {
      const folder = dirname(path);
      const line = `#include "${basename(path)}"`;
      const including = readdirSync(join(directory, folder))
        .filter(
          (name) => name.endsWith('.c') && readFileSync(join(directory, folder, name), 'utf8').includes(line),
        )
        .map((name) => join(folder, name));
      return including.length > 0 ? including : [path];
    });
  return [...new Set([...own.map((path) => path.replace(/\.c$/, '.o')), ...named])];
}
