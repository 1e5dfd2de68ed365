import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect } from 'vitest';
import { decompressors } from '../../src/cli/decompressors.js';
import type { OperationEvent } from '../../src/cli/operations.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { type KernelImage, parseKernelImage } from '../../src/kernel-image/kernel-image.js';
import { bootGuest, type Guest, type GuestOptions } from './guest.js';
import { compileKernelObject } from './kernel-objects.js';
import { withKernelSession } from './kernel-session.js';
import { killLivegraftAt, livegraft } from './live.js';

/** The last line of a command's output: its result, or what went wrong. */
export const errorOf = (lines: readonly Record<string, unknown>[]) => lines.at(-1);

/** The lines that are numbers. */
export function numbersIn(output: string): readonly number[] {
  return output
    .split('\n')
    .filter((line) => /^\d+$/.test(line))
    .map(Number);
}

/** A guest that forks and makes system calls all the while, and what tests of kernel patches do to it. */
export class KernelLab {
  readonly folder = mkdtempSync(join(tmpdir(), 'livegraft-kernel-patch-'));
  /** Unpacked once: every run of the command line reads it. */
  readonly vmlinux = join(this.folder, 'vmlinux');
  #guest: Guest | undefined;
  #image: KernelImage | undefined;

  /** Boots before the tests of a file, and ends behind them. */
  constructor(options: Pick<GuestOptions, 'vcpus' | 'cpu' | 'append' | 'files' | 'restarts'> = {}) {
    beforeAll(async () => {
      const guest = await bootGuest({ vcpus: 2, sharedMemory: true, ...options });
      this.#guest = guest;
      const bytes = extractVmlinux(readFileSync(guest.kernel.vmlinuz), 'vmlinuz', decompressors);
      writeFileSync(this.vmlinux, bytes);
      this.#image = parseKernelImage(bytes, 'vmlinuz');
      await this.makeCalls();
    });
    afterAll(() => {
      this.#guest?.stop();
      rmSync(this.folder, { recursive: true, force: true });
    });
  }

  /** Starts processes that fork and make system calls all the while. */
  readonly makeCalls = async (): Promise<void> => {
    await this.guest.run('(while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0');
  };

  get guest(): Guest {
    if (this.#guest === undefined) throw new Error('the guest has not booted');
    return this.#guest;
  }

  get image(): KernelImage {
    if (this.#image === undefined) throw new Error('the guest has not booted');
    return this.#image;
  }

  readonly compile = (source: string, ...flags: string[]) =>
    compileKernelObject(this.folder, source, ...flags);

  readonly build = (object: string, ...more: string[]) =>
    livegraft(
      ...['build', '--replacement', object, '--target', this.guest.kernel.vmlinuz],
      ...['-o', `${object}.lgp`, '--json', ...more],
    );

  /** Compiles a file of `test/targets/kernel` and makes a patch of it; returns its path. */
  readonly patchOf = (source: string, ...flags: string[]): string => {
    const object = this.compile(source, ...flags);
    const run = this.build(object);
    if (run.code !== 0) throw new Error(run.stdout + run.stderr);
    return `${object}.lgp`;
  };

  readonly subject = () => ['--gdb', this.guest.gdb, '--vmlinux', this.vmlinux];

  /** Through shared memory; what is killed, and the waiting for a thread, go through the protocol alone. */
  readonly run = (...args: string[]) =>
    livegraft(...args, ...this.subject(), '--guest-memory', this.guest.memoryFile as string, '--json');

  /** For the operations themselves. */
  readonly options = (gdb: string, onEvent: (kind: string) => void) => ({
    ...{ gdb, vmlinux: this.vmlinux, model: 'hybrid' as const, timeoutMs: 20_000 },
    signal: new AbortController().signal,
    onEvent: (event: OperationEvent) => onEvent(event.kind === 'step' ? event.step : event.kind),
  });

  /** The bytes at the entry of a function, as the guest has them. */
  readonly entryOf = (name: string): Promise<string> =>
    withKernelSession(this, async ({ client, kernel }) =>
      Buffer.from(await client.readMemory(kernel.expect(name), 32)).toString('hex'),
    );

  /** Kills the command line (SIGKILL) a while after it has told of an event. */
  readonly killedAt = (event: string, delayMs: number, ...args: string[]): Promise<void> =>
    killLivegraftAt(event, delayMs, ...args, ...this.subject());

  readonly expectQuiet = async (): Promise<void> => {
    const log = await this.guest.run(
      'dmesg | grep -E "BUG:|WARNING:|Oops|Call Trace|general protection" | head -3',
    );
    expect(log.trim()).toBe('');
  };
}
