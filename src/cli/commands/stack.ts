import type { Output } from '../output.js';
import { createProcessOperations } from '../process-operations.js';

export async function showStacks(pid: number, output: Output): Promise<void> {
  const tasks = await createProcessOperations().stacks(pid);
  output.json({
    event: 'stack',
    pid,
    tasks: tasks.map((task) => ({
      ...task,
      reason: task.reason === undefined ? null : { ...task.reason },
      frames: task.frames.map((f) => ({ ...f, symbol: f.symbol ?? null, module: f.module ?? null })),
    })),
  });
  const { bold, green, red } = output.colors;
  for (const task of tasks) {
    const verdict = task.reliable
      ? green('reliable')
      : `${red('unreliable')}: ${task.reason?.code}, ${task.reason?.detail}`;
    output.text(`${bold(`thread ${task.tid}`)} (${task.name}) ${verdict}`);
    for (const frame of task.frames) {
      const by = frame.by === 'signal' ? ' interrupted by a signal' : '';
      output.text(`  #${frame.index} ${frame.address} ${frame.symbol ?? '?'} (${frame.module ?? '?'})${by}`);
    }
  }
  const unreliable = tasks.filter((task) => !task.reliable).length;
  output.text(`${tasks.length} threads, ${unreliable} unreliable`);
}
