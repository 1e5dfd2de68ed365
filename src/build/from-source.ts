import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { LivegraftError } from '../base/errors.js';
import type { CompiledPair } from './compiled-pair.js';
import { type CapturedObject, CompilerCapture } from './compiler-capture.js';
import {
  type BuildOptions,
  type BuildResult,
  buildFromPairs,
  readObject,
  readTarget,
} from './from-objects.js';
import { SourceWorkspace } from './source-workspace.js';

export interface SourceBuildOptions extends BuildOptions {
  /** Where livegraft.h is. */
  readonly includeDir: string;
  readonly sourceDir: string;
  readonly diffPath: string;
  /** The build command and its arguments, run in the copy of the tree. */
  readonly command: readonly string[];
}

/**
 * Makes a patch from a source tree and a diff: the tree is copied, built, changed and built again, with the compiler
 * told to give every function and variable a section of its own. The tree itself is left alone.
 */
export async function buildFromSource(options: SourceBuildOptions): Promise<BuildResult> {
  // Before a long build: what is wrong with the target is known already.
  const target = readTarget(options);
  const work = mkdtempSync(join(tmpdir(), 'livegraft-build-'));
  try {
    options.onEvent({ kind: 'step', step: 'copy', detail: options.sourceDir });
    const workspace = new SourceWorkspace(
      resolve(options.sourceDir),
      resolve(options.diffPath),
      join(work, 'tree'),
    );
    const capture = new CompilerCapture(
      join(work, 'capture'),
      options.command,
      workspace.directory,
      options.sourceDir,
      options.includeDir,
    );
    // Only what depends on the changed files need be compiled in a tree that is built already.
    workspace.touchChangedFiles();
    options.onEvent({ kind: 'step', step: 'compile', detail: 'without the diff' });
    const original = capture.build('original');
    const changed = workspace.applyDiff();
    options.onEvent({ kind: 'step', step: 'compile', detail: `with the diff (${changed.join(', ')})` });
    let patched: ReadonlyMap<string, CapturedObject>;
    try {
      patched = capture.build('patched');
    } catch (error) {
      if (!workspace.keepsLineNumbers) throw error;
      // A #line directive may have landed where none may stand, inside a macro's arguments.
      workspace.dropLineDirectives();
      options.onEvent({
        kind: 'notice',
        text: 'line numbers could not be kept: functions that use __LINE__ count as changed',
      });
      patched = capture.build('patched');
    }
    const pairs = pairUp(original, patched);
    return buildFromPairs([{ target, pairs }], options);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function pairUp(
  original: ReadonlyMap<string, CapturedObject>,
  patched: ReadonlyMap<string, CapturedObject>,
): CompiledPair[] {
  const pairs: CompiledPair[] = [];
  for (const [output, object] of patched) {
    const before = original.get(output);
    if (before === undefined) {
      throw new LivegraftError(
        'new-object',
        `the diff adds a source file (${output}); only files that the target was built from can change`,
        {
          remedy: 'put the new code into an existing file',
          details: { object: output },
        },
      );
    }
    pairs.push({ original: readObject(before.path), patched: readObject(object.path) });
  }
  if (pairs.length === 0) {
    throw new LivegraftError('nothing-compiled', 'the build compiled nothing after the diff was applied', {
      remedy: 'check that the diff changes files that this build command compiles',
    });
  }
  return pairs;
}
