import type { KernelReference } from '../kernel-connection.js';
import { kernelStacks } from '../kernel-views.js';
import type { Output } from '../output.js';

export async function showKernelStacks(reference: KernelReference, output: Output): Promise<void> {
  const report = await kernelStacks(reference);
  output.json({
    event: 'kernelStack',
    ...report,
    modules: [...report.modules],
    tasks: report.tasks.map((task) => ({
      ...task,
      reason: task.reason === undefined ? null : { ...task.reason },
      frames: task.frames.map((frame) => ({
        ...frame,
        symbol: frame.symbol ?? null,
        source: frame.source ?? null,
      })),
    })),
  });
  const { bold, green, red } = output.colors;
  for (const task of report.tasks) {
    const verdict = task.reliable
      ? `${green('reliable')}${task.frames.length === 0 ? ', in user mode' : ''}`
      : `${red('unreliable')}: ${task.reason?.code}, ${task.reason?.detail}`;
    const name = task.kthread ? `[${task.name}]` : task.name;
    output.text(`${bold(`task ${task.pid}`)} (${name}) ${task.state} ${verdict}`);
    for (const frame of task.frames) {
      const by = frame.by === 'signal' ? ' interrupted' : '';
      const source = frame.source === undefined ? '' : ` at ${frame.source}`;
      output.text(
        `  #${frame.index} ${frame.address} ${frame.symbol ?? '?'} (${frame.module})${by}${source}`,
      );
    }
  }
  const unreliable = report.tasks.filter((task) => !task.reliable).length;
  output.text(
    `kernel ${report.release} at ${report.offset} from its link address, ${report.cpus} CPUs, ${report.modules.length} modules`,
  );
  output.text(
    `${report.tasks.length} tasks, ${unreliable} unreliable; the guest stood still for ${report.stoppedMs} ms`,
  );
}
