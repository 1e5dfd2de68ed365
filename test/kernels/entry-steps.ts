import type { KernelImage } from '../../src/kernel-image/kernel-image.js';
import type { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import type { Guest } from '../support/guest.js';
import { withKernelSession } from '../support/kernel-session.js';

/** Where tasks enter the kernel, and where they leave it. */
const PLACES = [
  ...['asm_sysvec_apic_timer_interrupt', 'asm_exc_page_fault', 'entry_SYSCALL_64'],
  ...['error_return', 'syscall_return_via_sysret'],
];
const ROUNDS = 2;
/** The longest way through one of them. */
const MOST_STEPS = 110;
/** Called by entry code on the stack on which the processor came in. */
const HELPERS = ['sync_regs'];

/**
 * Walks the stack at every instruction of the kernel's entry code, one step at a time. All must be reliable, but where the stack pointer
 * is the program's still, or again.
 */
export async function stepThroughEntries(
  subject: { readonly guest: Guest; readonly image: KernelImage },
  places: readonly string[] = PLACES,
): Promise<string> {
  const seen = new Map<string, string>();
  for (const name of places) {
    await withKernelSession(subject, async (session) => {
      for (let round = 0; round < ROUNDS; round++) {
        const vcpu = await runTo(session, name);
        for (let i = 0; i < MOST_STEPS && (await stepAndWalk(session, vcpu, seen)); i++);
      }
    });
  }
  const by = (kind: string) => [...seen].filter(([, found]) => found.startsWith(kind)).map(([at]) => at);
  const refused = [...seen].filter(([, found]) => !/^reliable|^between-cpus/.test(found));
  if (refused.length > 0) throw new Error(refused.map(([at, found]) => `${at}: ${found}`).join('; '));
  return `${seen.size} instructions: ${by('reliable').length} reliable, ${by('between-cpus').length} on the stack of user mode`;
}

/** Lets the guest run until a CPU comes to a function. */
export async function runTo({ client, kernel, memory, tasks }: KernelSession, name: string): Promise<string> {
  const at = kernel.expect(name);
  await client.insertBreakpoints([at]);
  client.resume();
  const stop = await client.waitForStop(20_000);
  if (stop === undefined) await client.interrupt();
  await client.removeBreakpoints([at]);
  memory.forget();
  const vcpu = (await tasks.cpus()).find(({ registers }) => registers.address('rip') === at)?.vcpu;
  if (vcpu === undefined) throw new Error(`no CPU came to ${name}`);
  return vcpu;
}

/** False when the CPU has left the entry code. */
async function stepAndWalk(
  { client, kernel, memory, stacks, tasks }: KernelSession,
  vcpu: string,
  seen: Map<string, string>,
): Promise<boolean> {
  memory.forget();
  const cpus = await tasks.cpus();
  const cpu = cpus.find((each) => each.vcpu === vcpu);
  const task = (await tasks.tasks(cpus)).find(({ address }) => address === cpu?.current);
  if (cpu === undefined || task === undefined) throw new Error('the CPU runs no task');
  const pc = cpu.registers.address('rip');
  const place = kernel.describe(pc) ?? 'user mode';
  const [low, high] = [kernel.expect('__entry_text_start'), kernel.expect('__entry_text_end')];
  const isEntry = (at: number) =>
    (at >= low && at < high) || HELPERS.some((name) => kernel.describe(at)?.startsWith(`${name}+`));
  if (!isEntry(pc)) return false;
  const walk = await stacks.walk(task, cpus);
  // What it has interrupted is looked at by the other steps.
  if (!walk.reliable && walk.frames.every((frame) => isEntry(frame.pc)))
    seen.set(place, `${walk.reason.code} ${walk.reason.detail}`);
  else if (!seen.has(place)) seen.set(place, 'reliable');
  await client.step(vcpu);
  return true;
}
