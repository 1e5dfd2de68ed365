import type { TransitionResult } from '../../engine/events.js';
import { TransitionControl } from '../../engine/transition.js';
import { EXIT } from '../conventions.js';
import type { Io } from '../io.js';
import { eventLine, resultLine } from '../json-lines.js';
// Only what a command needs is loaded: start-up is part of how long an apply takes.
import type { KernelReference } from '../kernel-connection.js';
import type { GuestStops } from '../kernel-operations.js';
import { createTransitionView } from '../live-view.js';
import type { ApplyOptions, ApplyOutcome, ForceOptions, OperationEvent } from '../operations.js';
import type { Output } from '../output.js';
import { createProcessOperations } from '../process-operations.js';
import { reasonText } from '../reason-text.js';
import { kernelOptions, nextCommands } from './next-commands.js';

type Common = Pick<ApplyOptions, 'pid' | 'model' | 'timeoutMs' | 'allowSuspendedContexts'>;
type KernelCommon = KernelReference & Pick<ApplyOptions, 'model' | 'timeoutMs'>;
type Hooks = Pick<ApplyOptions, 'signal' | 'control' | 'onEvent'>;

export async function applyPatch(
  patchPath: string,
  options: Common & Pick<ApplyOptions, 'barrier' | 'replace' | 'late'>,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = createProcessOperations();
  return await transit(output, io, { ...processSubject(options.pid), file: patchPath }, 'applied', (hooks) =>
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
  return await transit(output, io, processSubject(options.pid), 'reverted', (hooks) =>
    operations.revert({ ...options, ...hooks, patch }),
  );
}

export async function watchProcess(pid: number, output: Output, io: Io): Promise<number> {
  return await watch(output, io, (hooks) => createProcessOperations().watch({ pid, ...hooks }));
}

export async function watchKernelModules(
  reference: KernelReference,
  output: Output,
  io: Io,
): Promise<number> {
  const { watchKernel } = await import('../kernel-watch.js');
  return await watch(output, io, (hooks) => watchKernel({ ...reference, ...hooks }));
}

async function watch(
  output: Output,
  io: Io,
  work: (hooks: Pick<ApplyOptions, 'signal' | 'onEvent'>) => Promise<void>,
): Promise<number> {
  const abort = new AbortController();
  const stopListening = io.onInterrupt(() => abort.abort());
  const view = createTransitionView(output);
  const onEvent = (event: OperationEvent) => {
    output.json(eventLine(event));
    view.note(event);
  };
  try {
    await work({ signal: abort.signal, onEvent });
    return EXIT.done;
  } finally {
    view.end();
    stopListening();
  }
}

export async function forceTransition(
  options: Pick<ForceOptions, 'pid' | 'timeoutMs' | 'acceptInconsistency'>,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = createProcessOperations();
  return await transit(output, io, processSubject(options.pid), 'forced', (hooks) =>
    operations.force({ ...options, ...hooks }),
  );
}

export async function applyKernelPatch(
  patchPath: string,
  options: KernelCommon & Pick<ApplyOptions, 'barrier' | 'replace' | 'late'>,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = await import('../kernel-operations.js');
  return await transit(output, io, { ...kernelSubject(options), file: patchPath }, 'applied', (hooks) =>
    operations.applyToKernel({ ...options, ...hooks, patchPath }),
  );
}

export async function revertKernelPatch(
  patch: string | undefined,
  options: KernelCommon,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = await import('../kernel-operations.js');
  return await transit(output, io, kernelSubject(options), 'reverted', (hooks) =>
    operations.revertFromKernel({ ...options, ...hooks, patch }),
  );
}

export async function forceKernelTransition(
  options: KernelReference & Pick<ForceOptions, 'timeoutMs' | 'acceptInconsistency'>,
  output: Output,
  io: Io,
): Promise<number> {
  const operations = await import('../kernel-operations.js');
  return await transit(output, io, kernelSubject(options), 'forced', (hooks) =>
    operations.forceInKernel({ ...options, ...hooks }),
  );
}

/** How reports speak of what is patched. */
interface Subject {
  readonly name: string;
  readonly kind: string;
  readonly tasks: string;
  /** The options that name it in the next command. */
  readonly options: string;
  /** The patch file, where the command was given it. */
  readonly file?: string;
}

function processSubject(pid: number): Subject {
  return { name: `process ${pid}`, kind: 'process', tasks: 'thread', options: `--pid ${pid}` };
}

function kernelSubject(reference: KernelReference): Subject {
  return { name: 'kernel', kind: 'kernel', tasks: 'task', options: kernelOptions(reference) };
}

async function transit(
  output: Output,
  io: Io,
  subject: Subject,
  done: string,
  work: (hooks: Hooks) => Promise<ApplyOutcome & { readonly guest?: GuestStops }>,
): Promise<number> {
  const abort = new AbortController();
  // The first Ctrl-C leaves the transition where it is, consistent; the target never notices.
  const stopListening = io.onInterrupt(() => abort.abort());
  const control = new TransitionControl();
  const stopReversing = io.onReverse(() => control.reverse('the operator asked for it'));
  const view = createTransitionView(output);
  const onEvent = (event: OperationEvent) => {
    output.json(eventLine(event));
    view.note(event);
  };
  try {
    const { patch, result, guest } = await work({ signal: abort.signal, control, onEvent });
    view.end();
    output.json(resultLine(patch, result, guest));
    return report(output, subject, patch.name, done, result);
  } finally {
    view.end();
    stopListening();
    stopReversing();
  }
}

function report(
  output: Output,
  subject: Subject,
  name: string,
  done: string,
  result: TransitionResult,
): number {
  const { green, yellow } = output.colors;
  if (result.kind === 'complete') {
    const ms = result.durationMs.toFixed(1);
    const isReversed = done !== 'forced' && (done === 'applied') !== (result.direction === 'patch');
    const outcome = isReversed ? yellow(`turned around, not ${done}`) : green(done);
    output.text(`${outcome}: ${name}, ${subject.name}, ${result.tasks} ${subject.tasks}s in ${ms} ms`);
    return isReversed ? EXIT.failed : EXIT.done;
  }
  const { stragglers, switched } = result;
  output.text(
    `${yellow('not complete')}: ${name}, ${subject.name}: ${switched} ${subject.tasks}s switched, ${stragglers.length} not yet`,
  );
  for (const straggler of stragglers) {
    output.text(
      `  ${straggler.task} (${straggler.name}): ${reasonText(straggler.reason)}, tried ${straggler.attempts} times`,
    );
  }
  output.text(`  every ${subject.tasks} runs one consistent version; the ${subject.kind} is safe as it is`);
  const { go, back } = nextCommands(result.direction, subject.options, subject.file);
  output.text(`  what to do: go on with ${go}, or go the other way: ${back}`);
  return EXIT.incomplete;
}
