import { writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { combinePatches } from '../../patch/combine.js';
import { parsePatch, writePatch } from '../../patch/file.js';
import { sha256 } from '../../targets/process/patch-loader.js';
import { VERSION } from '../conventions.js';
import { readPatchFile } from '../operation-support.js';
import type { Output } from '../output.js';

export interface CombineOptions {
  readonly output: string;
  readonly name?: string;
}

/** Makes one patch of several, each for an object of its own. */
export function combine(paths: readonly string[], options: CombineOptions, output: Output): void {
  const patches = paths.map((path) => parsePatch(readPatchFile(path), path, sha256));
  const combined = combinePatches(patches, {
    name: options.name ?? basename(options.output).replace(/\.lgp$/, ''),
    createdAt: new Date().toISOString(),
    tool: `livegraft ${VERSION}`,
  });
  writeFileSync(options.output, writePatch(combined, sha256));
  const { manifest } = combined;
  output.json({
    event: 'combined',
    path: options.output,
    name: manifest.name,
    objects: manifest.objects.map(({ name, functions }) => ({
      name,
      functions: functions.map((fn) => fn.name),
    })),
  });
  output.text(`${output.colors.green('combined')} ${options.output}`);
  for (const { name, functions } of manifest.objects)
    output.text(`  for ${name}: replaces ${functions.map((fn) => fn.name).join(', ')}`);
}
