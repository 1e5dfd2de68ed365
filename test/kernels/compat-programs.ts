import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { applyToKernel, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { type KernelTaskStack, kernelStacks } from '../../src/cli/kernel-views.js';
import type { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import type { KernelWalk } from '../../src/targets/kernel/kernel-stacks.js';
import { withKernelSession } from '../support/kernel-session.js';
import { ROOT } from '../support/live.js';
import { countReads } from '../support/loadavg-reads.js';
import { stepThroughEntries } from './entry-steps.js';
import { type HalfDoneSubject, optionsFor } from './half-done.js';

/** How a 32-bit program comes into the kernel: by interrupt, or as the vDSO does it on this processor. */
export const COMPAT_WAYS = ['int80', 'vdso'] as const;
type CompatWay = (typeof COMPAT_WAYS)[number];

/** What such a program's stack in the kernel begins with, and where to step from; which one, kernel and processor decide. */
const ENTRIES: Readonly<Record<CompatWay, readonly string[]>> = {
  int80: ['asm_int80_emulation', 'entry_INT80_compat'],
  vdso: ['entry_SYSCALL_compat', 'entry_SYSENTER_compat'],
};
const LOOKS = 25;
const LAZY_MS = 3000;
/** Tasks of the program, by what they do (test/targets/kernel/compat.c). */
const [SLEEPS, NAPS, COMPUTES] = ['compat-sleeps', 'compat-naps', 'compat-computes'];

/** The program as a file for a guest. */
export function compatProgram(): { readonly path: string; readonly data: Uint8Array } {
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-compat-'));
  try {
    const [source, program] = [join(ROOT, 'test/targets/kernel/compat.c'), join(folder, 'compat')];
    const flags = ['-m32', '-nostdlib', '-static', '-no-pie', '-fno-pic', '-O2', '-fno-stack-protector'];
    const { status, stderr } = spawnSync('gcc', [...flags, '-o', program, source], { encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
    return { path: 'bin/compat', data: readFileSync(program) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** 32-bit programs that sleep, compute, and fork in a guest, while two functions change that must change together. */
export class CompatPrograms {
  readonly #subject: HalfDoneSubject;

  /** The guest has {@link compatProgram}. */
  constructor(subject: HalfDoneSubject) {
    this.#subject = subject;
  }

  get #options() {
    return optionsFor(this.#subject);
  }

  /** Says what was seen, or rejects. */
  async try(way: CompatWay): Promise<string> {
    const { guest } = this.#subject;
    await guest.run(
      `rm -f /tmp/compat-*; (/bin/compat ${way}; echo $? > /tmp/compat-stopped) & while ! grep -qs . /tmp/compat-seen; do sleep 0.1; done`,
    );
    const texts: string[] = [];
    try {
      const { entry, text } = await this.#look(way);
      texts.push(text, await stepThroughEntries(this.#subject, [entry]));
      await this.#apply();
      await this.#seeNew();
      await this.#revert();
      texts.push(await this.#lazy());
      await this.#seeNew();
      await this.#revert();
    } finally {
      await guest.run(
        `touch /tmp/compat-stop; while [ ! -e /tmp/compat-stopped ]; do sleep 0.1; done; killall ${SLEEPS} ${NAPS} ${COMPUTES}`,
      );
    }
    texts.push(await this.#count());
    return texts.join('; ');
  }

  /** Every stack of the program's tasks must be walked, by the one entry that is told; that of one which sleeps is held against what the kernel prints. */
  async #look(way: CompatWay): Promise<{ readonly entry: string; readonly text: string }> {
    const { tasks } = await kernelStacks(this.#options);
    await this.#compare(tasks.find(({ name }) => name === SLEEPS));
    const entries = new Set<string>();
    let walked = 0;
    await withKernelSession(this.#subject, async (session) => {
      for (let look = 0; look < LOOKS; look++) {
        for (const { name, walk } of await this.#walks(session)) {
          if (!walk.reliable && walk.reason.code === 'between-cpus') continue;
          if (!walk.reliable) throw new Error(`${name}: ${walk.reason.code} ${walk.reason.detail}`);
          walked++;
          const entry = session.stacks.reportFrames(walk.frames).at(-1)?.symbol;
          if (entry !== undefined) entries.add(entry.replace(/(?:_after_hwframe|_safe_stack)?\+.*/, ''));
        }
        session.client.resume();
        await session.client.waitForStop(10 + look);
        await session.client.interrupt();
      }
    });
    const [entry, ...others] = Object.values(ENTRIES)
      .flat()
      .filter((each) => entries.has(each));
    if (entry === undefined || others.length > 0 || !ENTRIES[way].includes(entry))
      throw new Error(`${way}: they came by ${[...entries]}`);
    return { entry, text: `${entry}: ${walked} walks, 0 unreliable` };
  }

  async #walks({ tasks, stacks }: KernelSession) {
    const cpus = await tasks.cpus();
    const all = (await tasks.tasks(cpus)).filter(({ name }) => name.startsWith('compat'));
    const walks: { readonly name: string; readonly walk: KernelWalk }[] = [];
    for (const task of all) walks.push({ name: task.name, walk: await stacks.walk(task, cpus) });
    return walks;
  }

  async #compare(task: KernelTaskStack | undefined): Promise<void> {
    if (task === undefined) throw new Error(`there is no ${SLEEPS}`);
    const printed = await this.#subject.guest.run(`cat /proc/${task.pid}/stack`);
    const theirs = [...printed.matchAll(/^\[<0>\] (\S+)\/0x[0-9a-f]+/gm)].map(([, symbol]) => symbol);
    // The kernel leaves out its scheduler's functions.
    const ours = task.frames.map(({ symbol }) => symbol).slice(-theirs.length);
    const places = (frames: readonly (string | undefined)[]) => frames.map((frame) => this.#placeOf(frame));
    if (theirs.length === 0 || `${places(ours)}` !== `${places(theirs)}`)
      throw new Error(`${SLEEPS}: ${ours.join(' ')} is not ${theirs.join(' ')}`);
  }

  /** `function+0x12` as a number: functions have several names, and the kernel prints another one of them. */
  #placeOf(frame = ''): number {
    const [name = '', offset] = frame.split('+');
    return (this.#subject.image.symbols.findAll(name)[0]?.address ?? Number.NaN) + Number(offset);
  }

  /** Model `lazy`: all but the one that sleeps switch themselves; the hybrid model then completes it. */
  async #lazy(): Promise<string> {
    const { patch } = this.#subject;
    const { result } = await applyToKernel({
      ...this.#options,
      ...{ patchPath: patch.path, model: 'lazy', timeoutMs: LAZY_MS },
    });
    if (result.kind !== 'incomplete') throw new Error(`lazy: ${JSON.stringify(result)}`);
    const waiting = result.stragglers.map(({ name }) => name).filter((name) => /^compat/.test(name));
    if (`${waiting}` !== SLEEPS) throw new Error(`of the program these wait: ${waiting}`);
    await this.#apply();
    return `model lazy: ${result.switched} tasks switched themselves`;
  }

  async #apply(): Promise<void> {
    const { result } = await applyToKernel({ ...this.#options, patchPath: this.#subject.patch.path });
    if (result.kind !== 'complete') throw new Error(`apply: ${JSON.stringify(result)}`);
  }

  async #revert(): Promise<void> {
    const { result } = await revertFromKernel({ ...this.#options, patch: this.#subject.patch.name });
    if (result.kind !== 'complete') throw new Error(`revert: ${JSON.stringify(result)}`);
  }

  async #seeNew(): Promise<void> {
    const { guest } = this.#subject;
    await guest.run(
      'n=$(grep -c "both are new" /tmp/compat-seen); while [ $(grep -c "both are new" /tmp/compat-seen) -le $n ]; do sleep 0.1; done',
      60_000,
    );
  }

  async #count(): Promise<string> {
    const { old, both, mixed } = await countReads(this.#subject.guest, '/tmp/compat-seen');
    if (old === 0 || both === 0 || mixed !== 0)
      throw new Error(`${old} reads saw both old, ${both} both new, ${mixed} a mix`);
    return `${old} reads saw both old, ${both} both new, 0 a mix`;
  }
}
