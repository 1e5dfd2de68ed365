import type { ProcessStatus } from '../operations.js';
import type { Output } from '../output.js';
import { createProcessOperations } from '../process-operations.js';

export async function showStatus(pid: number | undefined, output: Output): Promise<void> {
  const operations = createProcessOperations();
  const pids = pid === undefined ? await operations.findPatchedProcesses() : [pid];
  const processes: ProcessStatus[] = [];
  for (const each of pids) processes.push(await operations.status(each));
  output.json({
    event: 'status',
    processes: processes.map((status) => ({
      ...status,
      patches: status.patches.map((patch) => ({ ...patch, functions: [...patch.functions] })),
      transition:
        status.transition === undefined
          ? null
          : { ...status.transition, tasks: [...status.transition.tasks] },
    })),
  });
  if (processes.length === 0) output.text('no process of this machine carries a patch');
  for (const status of processes) showProcess(status, output);
}

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
  }
  const { transition } = status;
  if (transition === undefined) return;
  output.text(`  ${yellow('transition not complete')}: ${transition.direction}, patch ${transition.patchId}`);
  for (const task of transition.tasks) output.text(`    ${task.tid} ${task.name}: ${task.state}`);
  output.text(`  what to do: apply the patch again to complete it, or livegraft revert --pid ${status.pid}`);
}
