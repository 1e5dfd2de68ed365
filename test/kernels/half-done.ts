import { applyToKernel, type KernelOutcome, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { kernelStatus } from '../../src/cli/kernel-views.js';
import { TransitionControl } from '../../src/engine/transition.js';
import type { KernelImage } from '../../src/kernel-image/kernel-image.js';
import type { Guest } from '../support/guest.js';
import { withKernelSession } from '../support/kernel-session.js';
import { killLivegraftAt } from '../support/live.js';
import { countReads, readLoadavg } from '../support/loadavg-reads.js';

/** A patch of two functions that change together, and the guest that it is tried on. */
export interface HalfDoneSubject {
  readonly guest: Guest;
  readonly image: KernelImage;
  readonly vmlinux: string;
  readonly patch: { readonly path: string; readonly name: string };
}

/** What applies and reverts in a subject's guest have in common. */
export function optionsFor({ guest, vmlinux }: HalfDoneSubject) {
  const { signal } = new AbortController();
  const reference = { gdb: guest.gdb, vmlinux, guestMemory: guest.memoryFile };
  return { ...reference, model: 'hybrid' as const, timeoutMs: 30_000, signal, onEvent: () => {} };
}

/** What a killed run has told of last, and how long ago. */
const KILLS: readonly (readonly [event: string, delayMs: number])[] = [
  ...[['"check"', 40] as const, ['"prepare"', 15] as const, ['"install"', 0] as const],
  ...[['"taskSwitched"', 0] as const, ['"taskSwitched"', 20] as const, ['"finished"', 0] as const],
];
/** As many tasks have switched when a transition is turned around. */
const SWITCHED_BEFORE_REVERSAL = 5;
/** The code that a redirect or a barrier changes: the patched functions, and the kernel's edge. */
const CHANGED = [
  ...['loadavg_proc_show', 'get_avenrun'],
  ...['entry_SYSCALL_64_after_hwframe', 'error_return', 'exit_to_user_mode_prepare'],
];

/** Transitions that stop half-way: each must leave the guest with one version to every task, and be completed or reversed. */
export class HalfDoneTransitions {
  readonly #subject: HalfDoneSubject;
  /** Where livegraft was killed, and what that left: for who looks for the cause of a mix. */
  readonly #kills: string[] = [];

  constructor(subject: HalfDoneSubject) {
    this.#subject = subject;
  }

  get #options() {
    return optionsFor(this.#subject);
  }

  /** Kills livegraft at several places of an apply and of a revert; the next run completes it, or takes it back. */
  async killed(): Promise<string> {
    const { guest, vmlinux, patch } = this.#subject;
    const reference = ['--gdb', guest.gdb, '--vmlinux', vmlinux];
    const left = new Map<string, number>();
    const reads = await this.#unmixed(async () => {
      for (const [direction, ...args] of [
        ['apply', patch.path],
        ['revert', patch.name],
      ] as const) {
        for (const [i, [event, delayMs]] of KILLS.entries()) {
          if (direction === 'revert') await this.#finish('apply');
          await killLivegraftAt(event, delayMs, direction, ...args, ...reference);
          if (!(await guest.run('echo alive', 10_000)).includes('alive')) throw new Error('the guest stands');
          const state = await this.#state();
          left.set(state, (left.get(state) ?? 0) + 1);
          const { old, both } = await countReads(guest, '/tmp/seen');
          this.#kills.push(`${direction} ${delayMs} ms behind ${event}: ${state}, line ${old + both}`);
          // Forward, and back.
          if (i % 2 === 0) await this.#finish(direction);
          if (i === 0 && direction === 'apply') await this.#seeNew();
          await this.#finish('revert');
        }
      }
    });
    if (!['transition', 'applied', 'nothing'].every((state) => left.has(state)))
      throw new Error(`the kills left ${[...left.keys()]} only`);
    const states = [...left].map(([state, count]) => `${count} ${state}`).join(', ');
    return `${2 * KILLS.length} kills, which left ${states}; all completed or taken back; ${reads}`;
  }

  /** Turns a running transition around, both ways. */
  async reversed(): Promise<string> {
    const { patch } = this.#subject;
    const reads = await this.#unmixed(async () => {
      await this.#turned('unpatch', (options) => applyToKernel({ ...options, patchPath: patch.path }));
      await this.#finish('apply');
      await this.#seeNew();
      await this.#turned('patch', (options) => revertFromKernel({ ...options, patch: patch.name }));
      await this.#finish('revert');
    });
    return `apply and revert, each turned around after ${SWITCHED_BEFORE_REVERSAL} tasks had switched; ${reads}`;
  }

  async #turned(
    direction: 'patch' | 'unpatch',
    run: (
      options: Parameters<typeof applyToKernel>[0] & Parameters<typeof revertFromKernel>[0],
    ) => Promise<KernelOutcome>,
  ): Promise<void> {
    const control = new TransitionControl();
    let switched = 0;
    const onEvent = (event: { readonly kind: string }) => {
      if (event.kind === 'taskSwitched' && ++switched === SWITCHED_BEFORE_REVERSAL) control.reverse('test');
    };
    const { patch } = this.#subject;
    const options = { ...this.#options, control, onEvent, patchPath: patch.path, patch: patch.name };
    const { result } = await run(options);
    if (result.kind !== 'complete' || result.direction !== direction)
      throw new Error(`turned around: ${JSON.stringify(result)}`);
  }

  /**
   * Model `lazy`: tasks switch themselves at the kernel's edge, one that never makes a system call as well; kernel threads do not. Then
   * the hybrid model completes it.
   */
  async lazy(): Promise<string> {
    const { guest, patch } = this.#subject;
    await guest.run(
      'cp /bin/busybox /tmp/busybox-spins; (/tmp/busybox-spins sh -c "while :; do :; done") & sleep 0',
    );
    let text = '';
    try {
      const reads = await this.#unmixed(async () => {
        const [model, timeoutMs] = ['lazy' as const, 3000];
        const { result, guest: stops } = await applyToKernel({
          ...this.#options,
          ...{ patchPath: patch.path, model, timeoutMs },
        });
        if (result.kind !== 'incomplete') throw new Error(JSON.stringify(result));
        const waiting = new Set(result.stragglers.map(({ name }) => name));
        if (!waiting.has('kthreadd') || waiting.has('cat') || waiting.has('busybox-spins'))
          throw new Error(`these wait: ${[...waiting]}`);
        text = `${result.switched} tasks switched themselves, ${result.stragglers.length} wait, ${stops.stops} stops`;
        await this.#finish('apply');
        await this.#seeNew();
        await this.#finish('revert');
      });
      return `${text}; ${reads}`;
    } finally {
      await guest.run('killall busybox-spins');
    }
  }

  /** Completes, unless there is nothing to do any more. */
  async #finish(direction: 'apply' | 'revert'): Promise<void> {
    const { patch } = this.#subject;
    try {
      const { result } =
        direction === 'apply'
          ? await applyToKernel({ ...this.#options, patchPath: patch.path })
          : await revertFromKernel({ ...this.#options, patch: patch.name });
      if (result.kind !== 'complete') throw new Error(`${direction}: ${JSON.stringify(result)}`);
    } catch (error) {
      const { code } = error as { readonly code?: string };
      if (code !== 'already-applied' && code !== 'no-such-patch') throw error;
    }
  }

  /** Waits until a task has read what the new functions print. */
  async #seeNew(): Promise<void> {
    await this.#subject.guest.run('while ! grep -q "both are new" /tmp/seen; do sleep 0.1; done', 60_000);
  }

  async #state(): Promise<string> {
    const { patches, transition } = await kernelStatus(this.#options, false);
    if (transition !== undefined && transition !== null) return 'transition';
    return patches[0]?.state ?? 'nothing';
  }

  /** Reads what the functions print all the while, in tasks that fork; all code must be as it was in the end. */
  async #unmixed(use: () => Promise<void>): Promise<string> {
    const { guest } = this.#subject;
    const before = await this.#code();
    await guest.run(readLoadavg('/tmp/seen'));
    try {
      await use();
    } finally {
      await guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    }
    const { old, both, mixed } = await countReads(guest, '/tmp/seen');
    if (old === 0 || both === 0 || mixed !== 0) {
      // The lines beside each, since a torn one leaves its other half there.
      const numbers = `grep -nvE 'both are new|^[0-9]{1,3}\\.[0-9]+ ' /tmp/seen | head -8 | cut -d: -f1`;
      const lines = await guest.run(
        `for n in $(${numbers}); do sed -n "$((n > 2 ? n - 2 : 1)),$((n + 2))p" /tmp/seen | cat -A; echo "($n)"; done`,
      );
      const all = `${old} reads saw both old, ${both} both new, ${mixed} a mix`;
      throw new Error(`${all}:\n${lines}\n${this.#kills.join('\n')}`);
    }
    if ((await this.#state()) !== 'nothing') throw new Error(`behind it: ${await this.#state()}`);
    if ((await this.#code()) !== before) throw new Error('the code is not as it was');
    return `${old} reads saw both old, ${both} both new, 0 a mix`;
  }

  /** Of what a patch changes, as hexadecimal digits. */
  #code(): Promise<string> {
    return withKernelSession(this.#subject, async ({ client, kernel }) => {
      const parts: string[] = [];
      for (const name of CHANGED) {
        const [symbol, address] = [kernel.image.symbols.findUnique(name), kernel.find(name)];
        if (symbol === undefined || address === undefined) continue;
        parts.push(Buffer.from(await client.readMemory(address, symbol.sizeBytes)).toString('hex'));
      }
      return parts.join('\n');
    });
  }
}
