import { guestEnded } from './guest-calls.js';
import type { KernelSession } from './kernel-session.js';

/** Unreliable walks of one kind: the reason, and the innermost function that the walk could not get past. */
export interface SoakFinding {
  readonly cause: string;
  readonly place: string;
  readonly count: number;
  /** Of the first one. */
  readonly detail: string;
}

export interface SoakReport {
  readonly switches: number;
  readonly unreliable: number;
  readonly findings: readonly SoakFinding[];
  /** Tasks whose stacks were walked, kernel threads among them. */
  readonly tasks: number;
  readonly kthreads: number;
  readonly durationMs: number;
}

export interface SoakOptions {
  readonly switches: number;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
  readonly onProgress: (switches: number, unreliable: number) => void;
}

/**
 * Walks the stack of every task that is about to be switched away from, at a breakpoint in `__switch_to_asm`: the check
 * that CONFIG_DEBUG_VALIDATE_STACK was proposed for, from outside. The guest is stopped before and after.
 */
export async function soakKernel(session: KernelSession, options: SoakOptions): Promise<SoakReport> {
  const { client } = session;
  const address = session.kernel.expect('__switch_to_asm');
  const startMs = performance.now();
  const findings = new Map<string, { cause: string; place: string; count: number; detail: string }>();
  const tasks = new Map<number, boolean>();
  let [switches, unreliable] = [0, 0];
  const isOver = () =>
    switches >= options.switches ||
    options.signal.aborted ||
    performance.now() - startMs >= options.timeoutMs;
  await client.insertBreakpoint(address, 'software');
  try {
    while (!isOver()) {
      client.resume();
      const stop = await client.waitForStop(Math.max(1, options.timeoutMs - (performance.now() - startMs)));
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
        switches++;
        tasks.set(task.address, task.isKthread);
        if (!walk.reliable) {
          unreliable++;
          const { code, detail } = walk.reason;
          const last = walk.frames.at(-1);
          const place =
            (last === undefined ? undefined : session.stacks.describe(last.lookup)) ?? 'the first frame';
          const known = findings.get(`${code} ${place}`);
          if (known === undefined) findings.set(`${code} ${place}`, { cause: code, place, count: 1, detail });
          else known.count++;
        }
        await stepOver(session, cpu.vcpu, address);
        if (switches % PROGRESS_EVERY === 0) options.onProgress(switches, unreliable);
      }
    }
  } finally {
    await client.removeBreakpoint(address, 'software');
  }
  return {
    switches,
    unreliable,
    findings: [...findings.values()].sort((a, b) => b.count - a.count),
    tasks: tasks.size,
    kthreads: [...tasks.values()].filter(Boolean).length,
    durationMs: performance.now() - startMs,
  };
}

const PROGRESS_EVERY = 1000;

/** A CPU that stands at a breakpoint would stop there again at once. */
async function stepOver(session: KernelSession, vcpu: string, address: number): Promise<void> {
  const { client } = session;
  await client.removeBreakpoint(address, 'software');
  const stop = await client.step(vcpu);
  if (stop.kind === 'exited') throw guestEnded(stop.detail);
  await client.insertBreakpoint(address, 'software');
}
