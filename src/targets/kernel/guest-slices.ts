import { LivegraftError } from '../../base/errors.js';
import type { GdbClient, MemoryPiece } from './gdb-client.js';
import { guestEnded } from './guest-calls.js';
import type { MemorySource } from './guest-memory.js';

/** Behind this a stop of the guest ends, wherever it can. */
const SLICE_MS = 0.5;
/** How long the guest runs at least between two stops. */
const RUN_MS = 1;
/** How often to let a guest run on that was in user mode, where page-table isolation hides the kernel. */
const MAX_HIDDEN = 50;
/** Bytes that are moved in one go. */
const PIECE_BYTES = 1024;

/**
 * Stops a guest for a short time, many times. As a source of memory it is for what nobody else touches: two pieces may be
 * moved in two stops.
 */
export class GuestSlices implements MemorySource {
  readonly #client: GdbClient;
  /** Data of a kernel that page-table isolation may hide: a stop in which it is not seen is none. */
  witness: number | undefined;
  #resumedAt = 0;
  #isHeld = false;

  constructor(client: GdbClient) {
    this.#client = client;
  }

  /** Stops the guest, if it runs. It is given time to run before. Rejects with `target-gone`. */
  async stop(): Promise<void> {
    await this.stopAndRead([]);
  }

  /** The same, and reads pieces in that stop, each of which fits a packet. Rejects, stopped, when one can't be read. */
  async stopAndRead(pieces: readonly MemoryPiece[]): Promise<readonly Uint8Array[]> {
    await this.run();
    const isSeen = await this.#stopWhereSeen();
    if (isSeen || !this.#client.isRunning) return pieces.length === 0 ? [] : this.#client.readPieces(pieces);
    const { stop, bytes } = await this.#client.interruptAndRead(pieces);
    if (stop.kind === 'exited') throw guestEnded(stop.detail);
    return bytes;
  }

  /** Stops a running guest whose kernel may be hidden where it is not; false for others, which run on. */
  async #stopWhereSeen(): Promise<boolean> {
    if (this.witness === undefined) return false;
    const witness = [{ address: this.witness, sizeBytes: 1 }];
    for (let attempt = 1; this.#client.isRunning; attempt++) {
      try {
        const { stop } = await this.#client.interruptAndRead(witness);
        if (stop.kind === 'exited') throw guestEnded(stop.detail);
        return true;
      } catch (error) {
        const isHidden = error instanceof LivegraftError && error.code === 'guest-memory';
        if (!isHidden || attempt === MAX_HIDDEN) throw error;
        this.resume();
        await this.run();
      }
    }
    return false;
  }

  /** Lets the guest go on if it has stood still for a slice. */
  breathe(): void {
    if (this.#client.stoppedForMs >= SLICE_MS) this.resume();
  }

  /** Does something with a guest that stands still, and keeps it so until that is done. */
  async hold<T>(work: () => Promise<T>): Promise<T> {
    await this.stop();
    this.#isHeld = true;
    try {
      return await work();
    } finally {
      this.#isHeld = false;
    }
  }

  resume(): void {
    if (this.#client.isRunning || this.#isHeld) return;
    this.#client.resume();
    this.#resumedAt = performance.now();
  }

  /** Waits until the guest has run for a while. */
  async run(): Promise<void> {
    const leftMs = this.#resumedAt + RUN_MS - performance.now();
    if (leftMs <= 0 || !this.#client.isRunning) return;
    const stop = await this.#client.waitForStop(Math.ceil(leftMs));
    if (stop?.kind === 'exited') throw guestEnded(stop.detail);
  }

  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(sizeBytes);
    for (let at = 0; at < sizeBytes; at += PIECE_BYTES) {
      await this.stop();
      const count = Math.min(PIECE_BYTES, sizeBytes - at);
      bytes.set(await this.#client.readMemory(address + at, count), at);
      this.breathe();
    }
    return bytes;
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      await this.stop();
      await this.#client.writeMemory(address + at, bytes.subarray(at, at + PIECE_BYTES));
      this.breathe();
    }
  }
}
