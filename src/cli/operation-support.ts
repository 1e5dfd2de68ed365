import { readFileSync } from 'node:fs';
import { LivegraftError } from '../base/errors.js';
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
