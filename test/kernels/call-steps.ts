import { x86_64 } from '../../src/arch/x86-64/index.js';
import type { KernelImage } from '../../src/kernel-image/kernel-image.js';
import type { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import type { KernelWalk } from '../../src/targets/kernel/kernel-stacks.js';
import type { Guest } from '../support/guest.js';
import { withKernelSession } from '../support/kernel-session.js';
import { runTo } from './entry-steps.js';

const LONGEST_INSTRUCTION = 15;
/** In which a call leads on, and to which nothing returns: what it calls takes its address off the stack (arch/x86/lib/retpoline.S). */
const THUNK = /^(__pi_)?(__x86_(indirect|return)_|srso_(alias_)?return_thunk\+)/;

/** A return address that a call has pushed, and where. */
interface Pushed {
  readonly at: number;
  readonly address: number;
}

interface Subject {
  readonly guest: Guest;
  readonly image: KernelImage;
}

interface CallSteps {
  readonly steps: number;
  /** How many walks were. */
  readonly refused: number;
  /** Walks that were called reliable without a caller that is there. */
  readonly hidden: readonly string[];
}

/** Called by what the guest's load reads; it calls the function that is traced. */
const [SHOWS, TRACED] = ['version_proc_show', 'seq_printf'];
/** Tasks enter through each all the while: that the new one has returned through, that of a read, and one with nothing but the tracer in between. */
const CALLS = ['schedule_tail', 'do_sendfile', SHOWS];
const MOST_STEPS = 4000;
/** One goes by a copy of `ftrace_caller`, which is in no code that livegraft knows; two by that itself. */
const TRACERS = ['.', 'instances/second'];
const TRACING = 'mkdir -p /trace; mount -t tracefs none /trace; cd /trace';

/**
 * Steps through calls in a guest under load, without ftrace and with one and two tracers at a function's entry. No walk may be called
 * reliable that leaves out a caller.
 */
export async function stepThroughCalls(subject: Subject): Promise<string> {
  const { guest } = subject;
  const found: CallSteps[] = [];
  for (const name of CALLS) found.push(await stepThroughCall(subject, name, MOST_STEPS));
  await guest.run(TRACING);
  try {
    for (const at of TRACERS) {
      const set = `cd /trace; mkdir -p ${at}; echo ${TRACED} > ${at}/set_ftrace_filter; echo function > ${at}/current_tracer`;
      const tracer = (await guest.run(`${set}; cat ${at}/current_tracer`, 30_000)).trim();
      if (tracer !== 'function') throw new Error(`the tracer: ${tracer}`);
      found.push(await stepThroughCall(subject, SHOWS, MOST_STEPS));
    }
  } finally {
    await guest.run(
      'cd /trace; echo nop > current_tracer; rmdir instances/second; cd /; umount /trace',
      30_000,
    );
  }
  const hidden = found.flatMap((each) => each.hidden);
  if (hidden.length > 0) throw new Error(`reliable without a caller: ${hidden.join('; ')}`);
  const sum = (of: (each: CallSteps) => number) => found.reduce((all, each) => all + of(each), 0);
  const reliable = sum(({ steps, refused }) => steps - refused);
  if (reliable === 0) throw new Error('no walk was reliable');
  return `${sum(({ steps }) => steps)} steps in ${found.length} calls: ${reliable} reliable, none without a caller`;
}

/**
 * Steps through a call of `name`, instruction by instruction, and through all that it calls, and walks the stack at each. The return
 * addresses that the calls have pushed are noted meanwhile: a walk that is called reliable must have every one that lies there still.
 */
function stepThroughCall(subject: Subject, name: string, mostSteps: number): Promise<CallSteps> {
  return withKernelSession(subject, async (session) => {
    const { client, memory, tasks, stacks } = session;
    const vcpu = await runTo(session, name);
    let refused = 0;
    const hidden = new Set<string>();
    let pushed: readonly Pushed[] = [];
    let task = 0;
    let steps = 0;
    for (; steps < mostSteps; steps++) {
      memory.forget();
      const cpus = await tasks.cpus();
      const cpu = cpus.find((each) => each.vcpu === vcpu);
      if (cpu === undefined) throw new Error(`no CPU ${vcpu}`);
      const [pc, sp] = [cpu.registers.address('rip'), cpu.registers.address('rsp')];
      if (steps === 0) {
        task = cpu.current;
        pushed = [{ at: sp, address: await wordAt(session, sp) }];
      }
      if (cpu.current !== task) throw new Error(`another task runs after ${steps} steps`);
      const expected: Pushed[] = [];
      for (const each of pushed)
        if (each.at >= sp && (await wordAt(session, each.at)) === each.address) expected.push(each);
      if (expected.length === 0) break;
      const walk = await stacks.walk(await tasks.task(task, false), cpus);
      const place = stacks.describe(pc) ?? 'user mode';
      const missing = walk.reliable ? missingOf(walk, expected, session) : [];
      if (missing.length > 0) hidden.add(`${place}: ${missing.join(', ')}`);
      if (!walk.reliable) refused++;
      const code = await client.readMemory(pc, LONGEST_INSTRUCTION);
      const instruction = x86_64.decoder.decode(code, 0, pc);
      await client.step(vcpu);
      const isCall = instruction?.stackOps.some(({ kind }) => kind === 'callPush') === true;
      pushed = isCall ? [{ at: sp - 8, address: pc + instruction.lengthBytes }, ...expected] : expected;
    }
    return { steps, refused, hidden: [...hidden] };
  });
}

/** Entry code may be left out: where it saves registers its rows lead behind it, and no patch changes it. */
function missingOf(
  walk: KernelWalk,
  expected: readonly Pushed[],
  { kernel, stacks }: KernelSession,
): string[] {
  const [low, high] = [kernel.expect('__entry_text_start'), kernel.expect('__entry_text_end')];
  const found = new Set(walk.frames.map(({ pc }) => pc));
  return expected.flatMap(({ address }) => {
    const place = stacks.describe(address, 0) ?? `${address}`;
    const isEntry = address >= low && address < high;
    return found.has(address) || isEntry || THUNK.test(place) ? [] : [place];
  });
}

async function wordAt({ client }: KernelSession, address: number): Promise<number> {
  const bytes = await client.readMemory(address, 8);
  return Number(new DataView(bytes.buffer, bytes.byteOffset).getBigInt64(0, true));
}
