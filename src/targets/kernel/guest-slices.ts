import { LivegraftError } from '../../base/errors.js';
import type { GdbClient } from './gdb-client.js';
import { isMemoryError, type MemoryPiece } from './gdb-memory.js';
import { guestEnded } from './guest-calls.js';
import type { MemorySource } from './guest-memory.js';

/** Behind this a stop of the guest ends, wherever it can. */
const SLICE_MS = 0.5;
/** How long the guest runs at least between two stops. */
const RUN_MS = 1;
/** How often to let a guest run on that was in user mode, where page-table isolation hides the kernel. */
const MAX_HIDDEN = 50;
/** How long to wait for a CPU to come into the kernel: some ticks, and more where the machine is busy. */
const ENTRY_MS = 100;
/** Bytes that are moved in one go. */
const PIECE_BYTES = 1024;

/** How to tell that a stop shows the kernel, where page-table isolation may hide it. */
export interface KernelSight {
  /** Data of the kernel: a stop in which it is not seen is none. */
  readonly witness: number;
  /** Code of the kernel that a CPU runs from time to time whatever its programs do, on the kernel's page table. */
  readonly visited: number | undefined;
}

/**
 * Stops a guest for a short time, many times. As a source of memory it is for what nobody else touches: two pieces may be
 * moved in two stops.
 */
export class GuestSlices implements MemorySource {
  readonly #client: GdbClient;
  /** Undefined where the kernel is always seen. */
  sight: KernelSight | undefined;
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
    if (this.sight === undefined) return false;
    const { witness, visited } = this.sight;
    const piece = [{ address: witness, sizeBytes: 1 }];
    for (let attempt = 1; this.#client.isRunning; attempt++) {
      try {
        const { stop } = await this.#client.interruptAndRead(piece);
        if (stop.kind === 'exited') throw guestEnded(stop.detail);
        return true;
      } catch (error) {
        if (!isMemoryError(error) || attempt === MAX_HIDDEN) throw error;
        if (visited !== undefined && (await this.#stopAt(visited, piece))) return true;
        this.resume();
        await this.run();
      }
    }
    return false;
  }

  /**
   * Lets the guest go on to a place, for a while, and stops it in any case. Whether it sees the piece then. The processor's own breakpoint
   * needs no memory that the stub would have to see; a stub without these rejects it.
   */
  async #stopAt(address: number, piece: readonly MemoryPiece[]): Promise<boolean> {
    const place = { address, isHardware: true };
    try {
      await this.#client.change([{ kind: 'insertBreakpoint', ...place }]);
    } catch (error) {
      if (error instanceof LivegraftError && error.code === 'gdb-protocol') return false;
      throw error;
    }
    try {
      this.#client.resume();
      const stop = (await this.#client.waitForStop(ENTRY_MS)) ?? (await this.#client.interrupt());
      if (stop.kind === 'exited') throw guestEnded(stop.detail);
    } finally {
      if (!this.#client.isRunning) await this.#client.change([{ kind: 'removeBreakpoint', ...place }]);
    }
    return this.#client.readPieces(piece).then(
      () => true,
      (error) => {
        if (isMemoryError(error)) return false;
        throw error;
      },
    );
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
