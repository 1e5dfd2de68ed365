import { describe, expect, it } from 'vitest';
import type { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import type { KernelWalk } from '../../src/targets/kernel/kernel-stacks.js';
import type { Cpu } from '../../src/targets/kernel/kernel-tasks.js';
import { runTo } from '../kernels/entry-steps.js';
import { KernelLab, numbersIn } from '../support/kernel-lab.js';
import { withKernelSession } from '../support/kernel-session.js';
import { readLoadavg } from '../support/loadavg-reads.js';

/** With as many CPUs as no other test has: an NMI then comes to three of them. */
const lab = new KernelLab({ vcpus: 4 });

/** In `pt_regs` (arch/x86/include/asm/ptrace.h): the code segment of what was interrupted. */
const PT_REGS_CS = 0x88;
const MAX_STOPS = 1000;

interface Place {
  readonly function: string;
  /**
   * Whether the CPU is to run dump_stack() in place of that function, which returns nothing and may be left out for once: the guest then
   * prints what its own unwinder makes of the very same stack. Else the function prints a trace by itself.
   */
  readonly dumps: boolean;
  /** A function of the exception that is to be met, and what must have been interrupted. */
  readonly accept: (cpu: Cpu, session: KernelSession) => Promise<boolean>;
}

/** Walks the stack of a CPU that stands at a place, in the stop in which it came there. */
async function walkAt(
  place: Place,
): Promise<{ readonly walk: KernelWalk; readonly frames: readonly string[] }> {
  return withKernelSession(lab, async (session) => {
    const { client, kernel, tasks, stacks } = session;
    const address = kernel.expect(place.function);
    await client.insertBreakpoints([address]);
    try {
      for (let stop = 0; stop < MAX_STOPS; stop++) {
        client.resume();
        if ((await client.waitForStop(10_000)) === undefined) break;
        // Another CPU may be on its way into the kernel: stopping again at once lets it go on.
        const cpus = await tasks.cpus().catch(() => []);
        const cpu = cpus.find(({ registers }) => registers.address('rip') === address);
        if (cpu === undefined) continue;
        if (await place.accept(cpu, session)) {
          const isIdle = (await tasks.idleTasks(cpus)).has(cpu.current);
          const walk = await stacks.walk(await tasks.task(cpu.current, isIdle), cpus);
          const registers = cpu.registers.with({
            rip: BigInt.asUintN(64, BigInt(kernel.expect('dump_stack'))),
          });
          if (place.dumps) await client.change([{ kind: 'registers', vcpu: cpu.vcpu, registers }]);
          return { walk, frames: stacks.reportFrames(walk.frames).map(({ symbol }) => symbol ?? '?') };
        }
        await client.removeBreakpoints([address]);
        await client.step(cpu.vcpu);
        await client.insertBreakpoints([address]);
      }
      throw new Error(`no CPU came to ${place.function} as it was wanted`);
    } finally {
      if (client.isRunning) await client.interrupt();
      await client.removeBreakpoints([address]);
    }
  });
}

/** The traces that the guest has printed, each as far as its unwinder was sure, in kernel mode, without the sizes of functions. */
async function printedTraces(): Promise<readonly (readonly string[])[]> {
  const log = await lab.guest.run('sleep 0.2; dmesg | tail -n 400', 60_000);
  const traces = log.split('Call Trace:').slice(1);
  return traces.map((trace) =>
    (trace.split('</TASK>')[0] as string).split('\n').flatMap((line) => {
      const found = /^(?:\[[^\]]*\])*\s*(?:RIP: 0010:)?([\w.]+\+0x[0-9a-f]+)\/0x[0-9a-f]+/.exec(line);
      return found === null ? [] : [found[1] as string];
    }),
  );
}

/** The same, each from a frame on: behind the functions that print. */
async function printedFrom(first: string | undefined): Promise<readonly (readonly string[])[]> {
  return (await printedTraces()).map((trace) => trace.slice(trace.indexOf(first ?? '')));
}

const nameOf = (frame: string | undefined) => frame?.replace(/\+.*/, '');

/** Whether the stack that `cpu` is on is the task's own one. */
async function isOnTaskStack(cpu: Cpu, { tasks }: KernelSession): Promise<boolean> {
  const { stack } = await tasks.task(cpu.current, false);
  const at = cpu.registers.address('rsp');
  return at >= stack && at < stack + 16384;
}

describe('a guest with four CPUs', () => {
  it('never shows a mix of two functions that change together, under fork load', async () => {
    const patch = lab.patchOf('loadavg.c');
    await lab.guest.run(readLoadavg('/tmp/seen'));
    for (const args of [['apply', patch], ['revert']])
      expect(lab.run(...args, '--timeout', '30').lines.at(-1)).toMatchObject({
        result: { kind: 'complete' },
      });
    await lab.guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const seen = await lab.guest.run(
      'grep -c "both are new" /tmp/seen; grep -cE "^[0-9]{1,3}\\.[0-9]+ " /tmp/seen; grep -cvE "both are new|^[0-9]{1,3}\\.[0-9]+ " /tmp/seen; grep -c ^processor /proc/cpuinfo',
    );
    const [both, old, mix, cpus] = numbersIn(seen);
    expect(both).toBeGreaterThan(0);
    expect(old).toBeGreaterThan(0);
    expect(mix).toBe(0);
    expect(cpus).toBe(4);
    await lab.expectQuiet();
  });
});

describe('a stack with an exception on it is walked as the guest itself does', () => {
  it('in a timer interrupt, on the interrupt stack', async () => {
    const { walk, frames } = await walkAt({
      function: 'run_posix_cpu_timers',
      dumps: true,
      // What interrupts user mode has no stack of the kernel below.
      accept: async (cpu, session) => {
        if (await isOnTaskStack(cpu, session)) return false;
        const walk = await session.stacks.walk(await session.tasks.task(cpu.current, false), [cpu]);
        return walk.frames.some(({ by }) => by === 'signal');
      },
    });
    expect(walk).toMatchObject({ reliable: true });
    expect(frames.map(nameOf)).toContain('asm_sysvec_apic_timer_interrupt');
    expect(await printedFrom(frames[1])).toContainEqual(frames.slice(1));
  });

  it('in a page fault of the kernel', async () => {
    const { walk, frames } = await walkAt({
      function: 'do_user_addr_fault',
      dumps: true,
      accept: async (cpu, { client }) => {
        const [cs] = await client.readMemory(cpu.registers.address('rdi') + PT_REGS_CS, 1);
        return ((cs as number) & 3) === 0;
      },
    });
    expect(walk).toMatchObject({ reliable: true });
    const fault = frames.findIndex((frame) => nameOf(frame) === 'asm_exc_page_fault');
    expect(fault).toBeGreaterThan(0);
    expect(walk.frames[fault + 1]?.by).toBe('signal');
    expect(await printedFrom(frames[1])).toContainEqual(frames.slice(1));
  });

  it('in an NMI, on a stack of its own', async () => {
    // The shell asks all CPUs for their traces: those of others come in an NMI.
    await lab.guest.run('(while :; do echo l > /proc/sysrq-trigger; sleep 0.1; done) & sleep 0');
    const { walk, frames } = await walkAt({
      function: 'show_regs',
      dumps: false,
      accept: async (cpu, { client }) => {
        const [cs] = await client.readMemory(cpu.registers.address('rdi') + PT_REGS_CS, 1);
        return ((cs as number) & 3) === 0;
      },
    });
    expect(walk).toMatchObject({ reliable: true });
    const nmi = frames.findIndex(
      (frame) => nameOf(frame) === 'asm_exc_nmi' || nameOf(frame) === 'end_repeat_nmi',
    );
    expect(nmi).toBeGreaterThan(0);
    expect(walk.frames[nmi + 1]?.by).toBe('signal');
    // The instruction that the NMI interrupted is told before the trace.
    expect(await printedTraces()).toContainEqual(frames.slice(nmi + 2));
  });
});

describe('a stack in the thunk of an indirect call', () => {
  /** As many instructions a thunk and the return behind it have at most. */
  const MOST_STEPS = 6;

  it('is walked at each of its instructions, and shows who called', async () => {
    const seen = await withKernelSession(lab, async (session) => {
      const { client, memory, tasks, stacks } = session;
      const first = await runTo(session, '__x86_indirect_thunk_rax');
      const walks: { readonly reliable: boolean; readonly frames: readonly (string | undefined)[] }[] = [];
      for (let i = 0; i < MOST_STEPS; i++) {
        const cpus = await tasks.cpus();
        const cpu = cpus.find(({ vcpu }) => vcpu === first) as Cpu;
        const isIdle = (await tasks.idleTasks(cpus)).has(cpu.current);
        const walk = await stacks.walk(await tasks.task(cpu.current, isIdle), cpus);
        const frames = stacks.reportFrames(walk.frames).map(({ symbol }) => symbol);
        walks.push({ reliable: walk.reliable, frames });
        if (!/thunk/.test(frames[0] ?? '')) break;
        await client.step(first);
        memory.forget();
      }
      return walks;
    });
    const callee = seen.at(-1);
    expect(callee?.reliable).toBe(true);
    expect(callee?.frames[0]).toMatch(/\+0x0$/);
    expect(callee?.frames.length).toBeGreaterThan(2);
    const inThunk = seen.slice(0, -1);
    expect(inThunk.length).toBeGreaterThan(1);
    for (const { reliable, frames } of inThunk) {
      expect(reliable).toBe(true);
      // Behind the return, which is none, lies the callee already.
      const isReturn = /return_thunk/.test(frames[0] ?? '');
      expect(frames.slice(1)).toEqual(callee?.frames.slice(isReturn ? 0 : 1));
    }
  });
});
