import { accessSync, constants, existsSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CommanderError } from 'commander';
import { LivegraftError } from '../../base/errors.js';
import type { BuildEvent } from '../../build/events.js';
import { buildFromKernelSource } from '../../build/from-kernel-source.js';
import { buildFromObjects, readElf, sha256 } from '../../build/from-objects.js';
import { buildFromSource } from '../../build/from-source.js';
import { buildReplacement } from '../../build/kernel-replacement.js';
import { parsePatch } from '../../patch/file.js';
import type { PatchManifest } from '../../patch/manifest.js';
import { type BuildCommandOptions, EXIT } from '../conventions.js';
import type { Output } from '../output.js';

export async function build(
  command: readonly string[],
  options: BuildCommandOptions,
  output: Output,
): Promise<void> {
  const usage = (text: string): never => {
    output.io.err(`error: ${text}\n`);
    throw new CommanderError(EXIT.usage, 'livegraft.build', text);
  };
  const onEvent = (event: BuildEvent) => {
    if (event.kind === 'step') {
      output.json({ event: 'step', step: event.step, detail: event.detail });
      output.text(`${event.step}: ${event.detail}`);
    } else {
      output.json({ event: 'notice', text: event.text });
      output.text(`note: ${event.text}`);
    }
  };
  const { source, diff, orig, patched, replacement, target } = options;
  const common = {
    targetPath: target,
    debugDirs: options.debugDir ?? [],
    acceptedTypes: options.acceptLayoutChange ?? [],
    description: '',
    declarations: {
      ...(options.replace === true && { replace: true }),
      ...(options.barrier !== undefined && { barrier: options.barrier }),
    },
    onEvent,
  };
  const nameOf = (path: string) => options.name ?? basename(path).replace(/\.(patch|diff|o)$/, '');
  if (options.format === 'klp' && options.kernel !== true && replacement === undefined)
    usage('--format klp is for kernels: give --kernel or --replacement');
  if (options.format === 'klp' && (options.replace === true || options.barrier !== undefined))
    usage('--replace and --barrier are not for --format klp');
  if (options.module !== undefined && options.kernel !== true && replacement === undefined)
    usage('--module is for kernels: give --kernel or --replacement');
  expectWritable(options.output);
  const readModules = async () => {
    const { readModuleImage } = await import('../../kernel-image/module-image.js');
    return (options.module ?? []).map((path) => readModuleImage(readElf(path)));
  };
  let result: { readonly bytes: Uint8Array; readonly manifest: PatchManifest };
  const isPair = orig !== undefined && patched !== undefined;
  if (replacement !== undefined) {
    if ([source, diff, orig, patched].some((given) => given !== undefined))
      usage('--replacement stands alone, with --target');
    const { readKernelImage } = await import('../kernel-connection.js');
    result = buildReplacement(readElf(replacement), readKernelImage(target), {
      modules: await readModules(),
      name: nameOf(replacement),
      description: '',
      digest: sha256,
      createdAt: new Date().toISOString(),
      declarations: common.declarations,
    });
  } else if (options.kernel === true) {
    if (source === undefined || diff === undefined || isPair) usage('--kernel needs --source and --diff');
    const { readKernelImage } = await import('../kernel-connection.js');
    result = buildFromKernelSource({
      ...common,
      image: readKernelImage(target),
      sourceDir: source as string,
      diffPath: diff as string,
      buildDir: options.headers,
      modules: await readModules(),
      objects: command,
      includeDir: includeDir(),
      name: nameOf(diff as string),
    });
  } else if (source !== undefined && diff !== undefined && orig === undefined && patched === undefined) {
    if (command.length === 0) usage('give the build command behind --, for example: -- make');
    result = await buildFromSource({
      ...common,
      sourceDir: source,
      diffPath: diff,
      command,
      includeDir: includeDir(),
      name: nameOf(diff),
    });
  } else if (isPair && source === undefined && diff === undefined) {
    result = buildFromObjects({ ...common, origPath: orig, patchedPath: patched, name: nameOf(patched) });
  } else {
    return usage('give --source and --diff, --orig and --patched, or --replacement');
  }
  let { bytes } = result;
  if (options.format === 'klp') {
    const [{ readKernelImage }, { writeKlpModule }] = await Promise.all([
      import('../kernel-connection.js'),
      import('../../build/klp-module.js'),
    ]);
    bytes = writeKlpModule(parsePatch(bytes, options.output, sha256), readKernelImage(target));
  }
  writeWhole(options.output, bytes);
  const functions = result.manifest.objects.flatMap((object) => object.functions.map((fn) => fn.name));
  const { newFunctions, notes } = result.manifest;
  output.json({
    event: 'built',
    output: options.output,
    functions,
    newFunctions,
    sizeBytes: bytes.length,
  });
  output.text(`${output.colors.green('built')} ${options.output}: replaces ${functions.join(', ')}`);
  if (newFunctions.length > 0) output.text(`  adds ${newFunctions.join(', ')}`);
  for (const note of notes) output.text(`  note: ${note}`);
}

/** The package's folder of headers for patch code, above this file, compiled or not. */
function includeDir(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const found = join(folder, 'include');
    if (existsSync(join(found, 'livegraft.h'))) return found;
    if (folder === dirname(folder)) throw new Error('the package has lost its include/livegraft.h');
  }
}

/** Before a long build, instead of behind it. */
function expectWritable(path: string): void {
  try {
    const folder = dirname(path);
    if (!statSync(folder).isDirectory()) throw new Error(`${folder} is no directory`);
    accessSync(folder, constants.W_OK);
    if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw new Error('it is a directory');
  } catch (cause) {
    throw unwritable(path, cause);
  }
}

/** A reader never sees half a patch. */
function writeWhole(path: string, bytes: Uint8Array): void {
  const draft = `${path}.${process.pid}.tmp`;
  try {
    writeFileSync(draft, bytes);
    renameSync(draft, path);
  } catch (cause) {
    rmSync(draft, { force: true });
    throw unwritable(path, cause);
  }
}

function unwritable(path: string, cause: unknown): LivegraftError {
  return new LivegraftError('output-unwritable', `${path} can't be written: ${(cause as Error).message}`, {
    remedy: 'give a file in a folder that you may write to as -o',
    details: { path },
    cause,
  });
}
