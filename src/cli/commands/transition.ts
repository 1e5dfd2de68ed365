import type { TransitionResult } from '../../engine/events.js';
import { EXIT } from '../conventions.js';
import type { Io } from '../io.js';
import { eventLine, resultLine } from '../json-lines.js';
import { createTransitionView } from '../live-view.js';
import type { ApplyOptions, ApplyOutcome, OperationEvent } from '../operations.js';
import type { Output } from '../output.js';
import { createProcessOperations } from '../process-operations.js';
import { reasonText } from '../reason-text.js';

type Common = Pick<ApplyOptions, 'pid' | 'model' | 'timeoutMs' | 'allowSuspendedContexts'>;
type Hooks = Pick<ApplyOptions, 'signal' | 'onEvent'>;

export async function applyPatch(
  patchPath: string,
  options: Common,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = createProcessOperations();
  return await transit(output, io, options.pid, 'applied', (hooks) =>
    operations.apply({ ...options, ...hooks, patchPath }),
  );
}

export async function revertPatch(
  patch: string | undefined,
  options: Common,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = createProcessOperations();
  return await transit(output, io, options.pid, 'reverted', (hooks) =>
    operations.revert({ ...options, ...hooks, patch }),
  );
}

async function transit(
  output: Output,
  io: Io,
  pid: number,
  done: string,
  work: (hooks: Hooks) => Promise<ApplyOutcome>,
): Promise<number> {
  const abort = new AbortController();
  // The first Ctrl-C leaves the transition where it is, consistent; the target never notices.
  const stopListening = io.onInterrupt(() => abort.abort());
  const view = createTransitionView(output);
  const onEvent = (event: OperationEvent) => {
    output.json(eventLine(event));
    view.note(event);
  };
  try {
    const { patch, result } = await work({ signal: abort.signal, onEvent });
    view.end();
    output.json(resultLine(patch, result));
    return report(output, pid, patch.name, done, result);
  } finally {
    view.end();
    stopListening();
  }
}

function report(output: Output, pid: number, name: string, done: string, result: TransitionResult): number {
  const { green, yellow } = output.colors;
  if (result.kind === 'complete') {
    const ms = result.durationMs.toFixed(1);
    output.text(`${green(done)}: ${name}, process ${pid}, ${result.tasks} threads in ${ms} ms`);
    return EXIT.done;
  }
  const { stragglers, switched } = result;
  output.text(
    `${yellow('not complete')}: ${name}, process ${pid}: ${switched} threads switched, ${stragglers.length} not yet`,
  );
  for (const straggler of stragglers) {
    output.text(
      `  ${straggler.task} (${straggler.name}): ${reasonText(straggler.reason)}, tried ${straggler.attempts} times`,
    );
  }
  output.text('  every thread runs one consistent version; the process is safe as it is');
  output.text(
    `  what to do: repeat the command to go on, or go the other way: livegraft ${done === 'applied' ? 'revert' : 'apply'} --pid ${pid}`,
  );
  return EXIT.incomplete;
}
