import { readFileSync, statSync } from 'node:fs';
import { LivegraftError } from '../../base/errors.js';
import { sha256 } from '../../build/from-objects.js';
import { parsePatch } from '../../patch/file.js';
import type { Output } from '../output.js';

export function inspect(path: string, output: Output): void {
  let bytes: Uint8Array;
  try {
    // A pipe or a device would be read without an end.
    if (!statSync(path).isFile()) throw new Error('it is no regular file');
    bytes = readFileSync(path);
  } catch (cause) {
    throw new LivegraftError('patch-unreadable', `${path} can't be read: ${(cause as Error).message}`, {
      remedy: 'give the path of a .lgp file',
      cause,
    });
  }
  const { id, manifest } = parsePatch(bytes, path, sha256);
  output.json({ event: 'inspected', id, manifest });
  const { bold } = output.colors;
  output.text(bold(`${manifest.name} (${id})`));
  if (manifest.description !== '') output.text(`  ${manifest.description}`);
  output.text(
    `  made ${manifest.createdAt} by ${manifest.tool}, ${manifest.architecture}, format ${manifest.formatVersion}`,
  );
  for (const object of manifest.objects) {
    const identity =
      object.identity.kind === 'buildId'
        ? `build-id ${object.identity.hex}`
        : `text ${object.identity.sha256}`;
    output.text(`  for ${bold(object.name)} (${identity})`);
    for (const fn of object.functions) {
      const parts = fn.parts.length === 0 ? '' : `, with ${fn.parts.map((p) => p.name).join(', ')}`;
      output.text(`    replaces ${fn.name} at ${fn.old.address}, ${fn.old.sizeBytes} bytes${parts}`);
    }
    for (const symbol of object.symbols)
      output.text(`    uses ${symbol.kind} ${symbol.name} at ${symbol.address}`);
  }
  for (const name of manifest.newFunctions) output.text(`  adds function ${name}`);
  for (const data of manifest.newData) output.text(`  adds data ${data.name}, ${data.sizeBytes} bytes`);
  for (const note of manifest.notes) output.text(`  note: ${note}`);
}
