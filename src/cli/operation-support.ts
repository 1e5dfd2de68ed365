import { readFileSync } from 'node:fs';
import { LivegraftError } from '../base/errors.js';
import type { LeftModule } from '../targets/kernel/kernel-patch-modules.js';
import type { OperationEvent } from './operations.js';

type Steps = (step: Extract<OperationEvent, { kind: 'step' }>['step'], detail: string) => void;

export function stepsOf(onEvent: (event: OperationEvent) => void): {
  step: Steps;
  notice: (text: string) => void;
} {
  const start = performance.now();
  const atMs = () => performance.now() - start;
  return {
    step: (step, detail) => onEvent({ kind: 'step', step, detail, atMs: atMs() }),
    notice: (text) => onEvent({ kind: 'notice', text, atMs: atMs() }),
  };
}

/** Throws `not-on-top` for a patch that can't be removed before others: `above` are these, the newest first ({@link VersionStack.above}). */
export function expectOnTop(
  patch: { readonly id: string; readonly name: string },
  [above]: readonly { readonly id: string; readonly name: string }[],
): void {
  if (above === undefined) return;
  throw new LivegraftError(
    'not-on-top',
    `patch ${patch.name} lies below ${above.name}, which changes the same functions`,
    { remedy: `revert ${above.name} first`, details: { patch: patch.id, above: above.id } },
  );
}

export function readPatchFile(path: string): Uint8Array {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw new LivegraftError('patch-unreadable', `${path} can't be read: ${(cause as Error).message}`, {
      remedy: 'give the path of a .lgp file',
      details: { path },
      cause,
    });
  }
}

export function tellLeftModules(left: readonly LeftModule[], onEvent: (event: OperationEvent) => void): void {
  for (const { patch, object } of left)
    onEvent({ kind: 'object', change: 'left', patch: patch.name, object, detail: undefined, atMs: 0 });
}
