import { readFileSync, statSync } from 'node:fs';
import { LivegraftError } from '../../base/errors.js';
import { sha256 } from '../../build/from-objects.js';
import { parsePatch } from '../../patch/file.js';
import type { KernelReference } from '../kernel-connection.js';
import type { KernelPreview } from '../kernel-views.js';
import type { Output } from '../output.js';

/** Returns whether the kernel that is named, if any, would take the patch. */
export async function inspect(
  path: string,
  kernel: KernelReference | undefined,
  output: Output,
): Promise<boolean> {
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
  const patch = parsePatch(bytes, path, sha256);
  const { id, manifest } = patch;
  let preview: KernelPreview | undefined;
  if (kernel !== undefined) {
    // Much code, for kernels only.
    const { previewInKernel } = await import('../kernel-views.js');
    preview = await previewInKernel(kernel, patch);
  }
  output.json({
    event: 'inspected',
    id,
    manifest,
    ...(preview && {
      kernel: { ...preview, functions: [...preview.functions], refusal: preview.refusal ?? null },
    }),
  });
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
  for (const { name, callbacks = {} } of manifest.objects) {
    for (const [kind, symbol] of Object.entries(callbacks))
      output.text(`  ${kind} callback of ${name}: ${symbol}`);
  }
  for (const { id, version } of manifest.states ?? []) output.text(`  state ${id} in version ${version}`);
  if (manifest.replace === true) output.text('  replaces all older patches');
  if (manifest.barrier !== undefined) output.text(`  threads may switch themselves in ${manifest.barrier}`);
  for (const name of manifest.newFunctions) output.text(`  adds function ${name}`);
  for (const data of manifest.newData) output.text(`  adds data ${data.name}, ${data.sizeBytes} bytes`);
  for (const note of manifest.notes) output.text(`  note: ${note}`);
  if (preview === undefined) return true;
  const { release, functions, refusal } = preview;
  output.text(
    refusal === undefined
      ? `  the running kernel ${release} would take it:`
      : `  the running kernel ${release} would refuse it (${refusal.code}): ${refusal.message}`,
  );
  for (const { name, address } of functions) output.text(`    ${name} at ${address}`);
  return refusal === undefined;
}
