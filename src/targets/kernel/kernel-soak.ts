import { allowOptimization } from '../process/own-runtime.js';
import { SoakCount, type SoakOptions, type SoakReport } from '../soak.js';
import { guestEnded } from './guest-calls.js';
import type { KernelSession } from './kernel-session.js';

/**
 * Walks the stack of every task that is about to be switched away from, at a breakpoint in `__switch_to_asm`: the check
 * that CONFIG_DEBUG_VALIDATE_STACK was proposed for, from outside. The guest is stopped before and after.
 */
export async function soakKernel(session: KernelSession, options: SoakOptions): Promise<SoakReport> {
  // All of it is in stops, and there are many.
  allowOptimization(true);
  const { client } = session;
  const address = session.kernel.expect('__switch_to_asm');
  const count = new SoakCount(options);
  await client.insertBreakpoints([address]);
  try {
    while (count.end() === undefined) {
      client.resume();
      const stop = await client.waitForStop(Math.max(1, count.leftMs()));
      if (stop?.kind === 'exited') throw guestEnded(stop.detail);
      if (stop === undefined) {
        await client.interrupt();
        break;
      }
      const cpus = await session.tasks.cpus();
      for (const cpu of cpus) {
        if (cpu.registers.address('rip') !== address) continue;
        const task = await session.tasks.task(cpu.current, false);
        const walk = await session.stacks.walk(task, cpus);
        count.note(task.address, task, walk, () => {
          const last = walk.frames.at(-1);
          return (last === undefined ? undefined : session.stacks.describe(last.lookup)) ?? 'the first frame';
        });
        await stepOver(session, cpu.vcpu, address);
      }
    }
  } finally {
    await client.removeBreakpoints([address]);
  }
  return count.report(count.end() ?? 'time');
}

/** A CPU that stands at a breakpoint would stop there again at once. */
async function stepOver(session: KernelSession, vcpu: string, address: number): Promise<void> {
  const { client } = session;
  await client.removeBreakpoints([address]);
  const stop = await client.step(vcpu);
  if (stop.kind === 'exited') throw guestEnded(stop.detail);
  await client.insertBreakpoints([address]);
}
