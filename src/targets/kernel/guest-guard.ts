import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import type { Socket } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { CallPlaces } from './call-places.js';

/** What a guard must know to give a borrowed task back. */
export interface GuardedGuest extends CallPlaces {
  /** Where the registry's anchor is. */
  readonly anchor: number;
}

/** What a guard is told, one JSON text a line. The end of its input without `dismiss` means that it is needed. */
export type GuardMessage =
  | { readonly kind: 'watch'; readonly guest: GuardedGuest }
  | { readonly kind: 'dismiss' };

/**
 * A small process that outlives this one. QEMU's stub does not let a guest go on whose debugger has died: the guard connects
 * then and lets it go. It is told by the end of a pipe, which comes whatever becomes of this process, SIGKILL included.
 */
export class GuestGuard {
  readonly #input: Socket;

  private constructor(child: ChildProcess) {
    this.#input = child.stdin as Socket;
    // Without a guard livegraft does its work all the same.
    child.on('error', () => {});
    this.#input.on('error', () => {});
    child.unref();
    this.#input.unref();
  }

  /**
   * Starts one, which takes it some 40 ms of another processor: early, while there is no connection yet. `endpoint` as
   * `--gdb` names it. Undefined where the sources run unbundled.
   */
  static start(endpoint: string): GuestGuard | undefined {
    const script = fileURLToPath(new URL('./guest-guard.cjs', import.meta.url));
    if (!existsSync(script)) return undefined;
    // A session of its own: what a terminal sends to this process does not reach it. No certificates are read.
    return new GuestGuard(
      spawn(process.execPath, ['--single-threaded', script, endpoint], {
        detached: true,
        env: {},
        stdio: ['pipe', 'ignore', 'ignore'],
      }),
    );
  }

  watch(guest: GuardedGuest): void {
    this.#tell({ kind: 'watch', guest });
  }

  /** The guest runs: there is nothing to do. */
  dismiss(): void {
    this.#tell({ kind: 'dismiss' });
    this.#input.end();
  }

  /** It is not certain that the guest runs. */
  callOut(): void {
    this.#input.destroy();
  }

  #tell(message: GuardMessage): void {
    this.#input.write(`${JSON.stringify(message)}\n`);
  }
}
