import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { inflateSync } from 'node:zlib';
import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError, ParseError } from '../base/errors.js';
import type { ElfFile } from '../elf/elf-file.js';
import { parseElf } from '../elf/reader.js';
import type { PatchDeclarations } from '../patch/manifest.js';
import { findDebugFile } from './debug-files.js';
import type { BuildEvent } from './events.js';
import { type MadePatch, makePatch, type PatchSource } from './make-patch.js';
import { ObjectModel } from './object-model.js';
import { TargetModel } from './target-model.js';

export interface BuildOptions {
  readonly targetPath: string;
  /** Where to look for the debug file of a stripped target, besides the system's folder. */
  readonly debugDirs: readonly string[];
  /** Names of structures whose layout may change. */
  readonly acceptedTypes: readonly string[];
  readonly name: string;
  readonly declarations?: PatchDeclarations;
  readonly description: string;
  readonly onEvent: (event: BuildEvent) => void;
}

export interface BuildResult extends MadePatch {
  readonly bytes: Uint8Array;
}

/** Makes a patch from two compilations of one source file (with `-ffunction-sections -fdata-sections`). */
export function buildFromObjects(
  options: BuildOptions & { readonly origPath: string; readonly patchedPath: string },
): BuildResult {
  const target = readTarget(options);
  const pair = { original: readObject(options.origPath), patched: readObject(options.patchedPath) };
  return buildFromPairs([{ target, pairs: [pair] }], options);
}

export function buildFromPairs(
  sources: readonly PatchSource[],
  options: Omit<BuildOptions, 'targetPath' | 'debugDirs'>,
): BuildResult {
  return makePatch(sources, {
    name: options.name,
    description: options.description,
    decoder: x86_64.decoder,
    acceptedTypes: options.acceptedTypes,
    digest: sha256,
    createdAt: new Date().toISOString(),
    ...(options.declarations && { declarations: options.declarations }),
    onEvent: options.onEvent,
  });
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

export function readObject(path: string): ObjectModel {
  const elf = readElf(path);
  if (elf.type !== 1) {
    throw new LivegraftError('not-an-object', `${path} is no relocatable object (.o)`, {
      remedy: 'give the outputs of two compilations with -c',
      details: { path },
    });
  }
  return new ObjectModel(elf, x86_64.decoder);
}

/** Reads the target with its symbols; throws `target-stripped` when nothing names its functions. */
export function readTarget({ targetPath: path, debugDirs }: BuildOptions): TargetModel {
  const elf = readElf(path);
  if (elf.type === 1) {
    throw new LivegraftError('not-a-program', `${path} is a relocatable object, no executable or library`, {
      remedy: 'give the file that runs, or the library that is loaded, as --target',
      details: { path },
    });
  }
  const symbolSource = elf.symbols.length > 0 ? elf : (findDebugFile(elf, path, debugDirs) ?? elf);
  return TargetModel.ofElf(elf, symbolSource, elf.soname ?? basename(path));
}

export function readElf(path: string): ElfFile {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new LivegraftError('file-unreadable', `${path} can't be read: ${(cause as Error).message}`, {
      remedy: `check the path (looked in ${dirname(path)})`,
      details: { path },
      cause,
    });
  }
  try {
    return parseElf(bytes, path, {
      inflate: (bytes, sizeBytes) => inflateSync(bytes, { maxOutputLength: Math.max(1, sizeBytes) }),
    });
  } catch (error) {
    if (!(error instanceof ParseError)) throw error;
    throw new LivegraftError('malformed-input', error.message, {
      remedy: 'give a whole 64-bit ELF file; copy or compile it again if it should be one',
      details: error.details,
      cause: error,
    });
  }
}
