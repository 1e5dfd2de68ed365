import { readFileSync } from 'node:fs';
import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { ObjectState } from '../../targets/process/patch-register.js';
import type { StragglerReport } from '../../targets/straggler-report.js';
import { stragglerJson } from '../json-lines.js';
import type { KernelReference } from '../kernel-connection.js';
import { LIVEPATCH_SNAPSHOT_COMMAND, parseLivepatchState } from '../klp-state.js';
import type { ProcessStatus, TransitionStatus } from '../operations.js';
import type { Output } from '../output.js';
import { createProcessOperations } from '../process-operations.js';
import { reasonText } from '../reason-text.js';
import { kernelOptions, nextCommands } from './next-commands.js';

export async function showStatus(pid: number | undefined, explain: boolean, output: Output): Promise<void> {
  const operations = createProcessOperations();
  const pids = pid === undefined ? await operations.findPatchedProcesses() : [pid];
  const processes: ProcessStatus[] = [];
  for (const each of pids) processes.push(await operations.status(each, explain));
  output.json({
    event: 'status',
    processes: processes.map((status) => ({
      ...status,
      patches: status.patches.map((patch) => ({
        ...patch,
        objects: patch.objects.map((object) => ({ ...object, functions: [...object.functions] })),
        functions: [...patch.functions],
      })),
      transition:
        status.transition === undefined
          ? null
          : {
              ...status.transition,
              startedAt: status.transition.startedAt ?? null,
              tasks: [...status.transition.tasks],
              stragglers: status.transition.stragglers?.map(stragglerJson) ?? null,
            },
    })),
  });
  if (processes.length === 0) output.text('no process of this machine carries a patch');
  for (const status of processes) showProcess(status, output);
}

const ENTRY_TEXT = {
  redirected: '',
  original: ', not redirected yet',
  moduleUnloaded: ', and the module was unloaded since',
  moduleReloaded: ', and the module was loaded again since: it runs without the patch',
} as const;

const MODULE_TEXT = {
  pending: 'pending: it is not loaded',
  unpatched: 'not patched: it was loaded while nobody watched; applying the patch again completes it',
  unfit: 'not patched: what is loaded under this name is another build',
} as const;

export async function showKernelStatus(
  reference: KernelReference,
  explained: boolean,
  output: Output,
): Promise<void> {
  const { kernelStatus } = await import('../kernel-views.js');
  const { release, patches, transition } = await kernelStatus(reference, explained);
  output.json({
    event: 'kernelStatus',
    release,
    patches: patches.map(({ id, name, state, forced, appliedAt, functions, moduleStates }) => ({
      id,
      name,
      state,
      forced,
      appliedAt,
      modules: moduleStates.map((module) => ({
        name: module.name,
        state: module.state,
        functions: [...module.functions],
      })),
      functions: functions.map((fn) => ({
        object: fn.object,
        name: fn.name,
        entry: fn.entry,
        oldAddress: hex(fn.old[0]?.address ?? 0),
        newAddress: hex(fn.new[0]?.address ?? 0),
      })),
    })),
    transition:
      transition === undefined
        ? null
        : {
            patchId: transition.patchId,
            direction: transition.direction,
            startedAt: transition.startedAt ?? null,
            stragglers: transition.stragglerReports?.map(stragglerJson) ?? null,
          },
  });
  const { bold, green, yellow } = output.colors;
  output.text(bold(`kernel ${release}`));
  if (patches.length === 0) output.text('  no patch');
  for (const patch of patches) {
    const state = patch.state === 'applied' ? green(patch.state) : yellow(patch.state);
    output.text(
      `  ${patch.name} (${patch.id}) ${state} since ${patch.appliedAt}${patch.forced ? ', forced' : ''}`,
    );
    for (const fn of patch.functions) {
      const [from, to] = [hex(fn.old[0]?.address ?? 0), hex(fn.new[0]?.address ?? 0)];
      output.text(`    ${fn.object}: ${fn.name} ${from} -> ${to}${yellow(ENTRY_TEXT[fn.entry])}`);
    }
    for (const { name, state, functions } of patch.moduleStates) {
      if (state !== 'patched')
        output.text(`    ${yellow(name)}: ${functions.join(', ')} ${MODULE_TEXT[state]}`);
    }
  }
  if (transition === undefined) return;
  const { direction, patchId, stragglerReports } = transition;
  output.text(`  ${yellow('transition not complete')}: ${direction}, patch ${patchId}`);
  const options = kernelOptions(reference);
  if (stragglerReports !== undefined)
    explain(transition, stragglerReports, { tasks: 'task', name: 'kernel', options }, output);
  else {
    const { go, back } = nextCommands(direction, options);
    output.text(
      `  what to do: ${go} completes it, ${back} goes the other way; livegraft status ${options} --explain says why it is not complete`,
    );
  }
}

/** What the kernel's own livepatch does in a machine, from a snapshot that was taken there (`-`: from standard input). */
export async function showLivepatchStatus(path: string, output: Output): Promise<void> {
  let text: string;
  try {
    text = readFileSync(path === '-' ? 0 : path, 'utf8');
  } catch (cause) {
    throw new LivegraftError('file-unreadable', `${path} can't be read: ${(cause as Error).message}`, {
      remedy: `take a snapshot in the machine: ${LIVEPATCH_SNAPSHOT_COMMAND}`,
      cause,
    });
  }
  const patches = parseLivepatchState(text);
  output.json({
    event: 'livepatchStatus',
    patches: patches.map((patch) => ({
      ...patch,
      functions: [...patch.functions],
      stragglers: patch.stragglers.map((task) => ({ ...task, stack: [...task.stack] })),
    })),
  });
  const { bold, green, yellow } = output.colors;
  if (patches.length === 0) output.text('no livepatch is loaded there');
  for (const { name, enabled, transition, functions, stragglers } of patches) {
    const state =
      transition === null
        ? enabled
          ? green('enabled')
          : 'disabled'
        : yellow(`in transition: ${transition}`);
    output.text(`${bold(name)} ${state}`);
    for (const fn of functions) output.text(`  ${fn.object}: ${fn.name}`);
    for (const task of stragglers) {
      const why =
        task.function === null ? 'its stack shows no patched function' : `it is in ${task.function}`;
      output.text(`  ${task.tid} ${task.name}: ${why}`);
      for (const frame of task.stack) output.text(`      ${frame}`);
    }
  }
}

/** What is said of an object's functions that are not patched. */
const OBJECT_STATES: Readonly<
  Record<Exclude<ObjectState, 'patched'>, (pid: number, path: string) => string>
> = {
  partly: () => 'not patched in another copy of it that was loaded (dlmopen): a patch reaches one',
  pending: () => 'pending: it is not loaded',
  unpatched: (pid, path) =>
    `not patched: it was loaded while nobody watched; livegraft apply --pid ${pid} ${path} completes the patch`,
  unfit: () => 'not patched: what is loaded under this name is another build, or is loaded twice',
};

function showProcess(status: ProcessStatus, output: Output): void {
  const { bold, green, yellow } = output.colors;
  output.text(bold(`process ${status.pid}: ${status.executable}`));
  if (status.patches.length === 0) output.text('  no patch');
  for (const patch of status.patches) {
    const state = patch.state === 'applied' ? green(patch.state) : yellow(patch.state);
    output.text(
      `  ${patch.name} (${patch.id}) ${state} since ${patch.appliedAt}${patch.forced ? ', forced' : ''}`,
    );
    for (const fn of patch.functions)
      output.text(`    ${fn.object}: ${fn.name} ${fn.oldAddress} -> ${fn.newAddress}`);
    for (const { name, state, functions } of patch.objects) {
      if (state === 'patched') continue;
      output.text(
        `    ${yellow(name)}: ${functions.join(', ')} ${OBJECT_STATES[state](status.pid, patch.path)}`,
      );
    }
  }
  const { transition } = status;
  if (transition === undefined) return;
  output.text(`  ${yellow('transition not complete')}: ${transition.direction}, patch ${transition.patchId}`);
  if (transition.isHeld) output.text('    another process holds the threads: probably a livegraft at work');
  for (const task of transition.tasks) output.text(`    ${task.tid} ${task.name}: ${task.state}`);
  if (transition.stragglers !== undefined) {
    const file = status.patches.find(({ id }) => id === transition.patchId)?.path;
    const subject = {
      tasks: 'thread',
      name: 'process',
      options: `--pid ${status.pid}`,
      ...(file === undefined ? {} : { file }),
    };
    explain(transition, transition.stragglers, subject, output);
  } else {
    output.text(
      `  what to do: apply the patch again to complete it, or livegraft revert --pid ${status.pid}; why it is not complete: --explain`,
    );
  }
}

function explain(
  { direction, startedAt }: Pick<TransitionStatus, 'direction'> & { readonly startedAt?: string | undefined },
  stragglers: readonly StragglerReport[],
  subject: {
    readonly tasks: string;
    readonly name: string;
    readonly options: string;
    readonly file?: string;
  },
  output: Output,
): void {
  const { bold, yellow } = output.colors;
  output.text(
    `  ${stragglers.length} ${subject.tasks}s have not switched, of a transition that began ${startedAt ?? '?'}`,
  );
  for (const {
    tid,
    name,
    since,
    attempts,
    seenAt,
    reason,
    frames,
    blockingFrame,
    releasedBy,
  } of stragglers) {
    const seen = seenAt === 'now' ? '' : `, as seen ${seenAt}`;
    const why = reason === undefined ? 'nothing holds it' : reasonText(reason);
    output.text(`  ${bold(`${subject.tasks} ${tid}`)} (${name}): ${why}${seen}`);
    output.text(`    since ${since ?? '?'}, refused ${attempts} times`);
    frames.forEach((frame, index) => {
      const line = `#${index} ${hex(frame.address)} ${frame.symbol ?? '?'} (${frame.module ?? '?'})`;
      output.text(index === blockingFrame ? `  ${yellow(`> ${line}  <- blocks`)}` : `    ${line}`);
    });
    output.text(`    what releases it: ${releasedBy}`);
  }
  const { tasks, options, file } = subject;
  const { go, back } = nextCommands(direction, options, file);
  output.text(`  what to do, while the ${subject.name} runs on safely as it is:`);
  output.text(`    release the ${tasks}s as said above, and repeat ${go} to complete it;`);
  output.text(`    or go the other way with ${back};`);
  output.text(`    or, where a mix of versions can do no harm, livegraft force ${options} (see its help)`);
}
