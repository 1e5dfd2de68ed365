import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import type { GdbClient, GuestChange, GuestStop } from './gdb-client.js';
import { GuestSlices } from './guest-slices.js';

const [WITNESS, VISITED] = [-0x7f00_0000, -0x7e00_0000];
const stopBy = (signal: number): GuestStop => ({ kind: 'signal', signal, vcpu: '01' });

/** A guest whose kernel is seen only where a CPU stands at a breakpoint; `ticks`: whether any comes to it. */
class HiddenGuest {
  isRunning = true;
  stoppedForMs = 0;
  ticks = true;
  /** What it answers to a breakpoint of the processor's. */
  refusal: LivegraftError | undefined;
  readonly changes: GuestChange[] = [];
  #isSeen = false;
  #breakpoint: number | undefined;

  resume(): void {
    this.isRunning = true;
    this.#isSeen = false;
  }

  async waitForStop(): Promise<GuestStop | undefined> {
    if (this.#breakpoint !== VISITED || !this.ticks) return undefined;
    this.isRunning = false;
    this.#isSeen = true;
    return stopBy(5);
  }

  async interrupt(): Promise<GuestStop> {
    this.isRunning = false;
    return stopBy(2);
  }

  async interruptAndRead() {
    const stop = await this.interrupt();
    return { stop, bytes: await this.readPieces() };
  }

  async readPieces(): Promise<readonly Uint8Array[]> {
    if (!this.#isSeen) throw new LivegraftError('guest-memory', 'not mapped');
    return [Uint8Array.of(7)];
  }

  async change(changes: readonly GuestChange[]): Promise<void> {
    expect(this.isRunning).toBe(false);
    if (this.refusal !== undefined) throw this.refusal;
    this.changes.push(...changes);
    for (const each of changes)
      this.#breakpoint = each.kind === 'insertBreakpoint' ? each.address : undefined;
  }
}

const slicesOf = (guest: HiddenGuest) => {
  const slices = new GuestSlices(guest as unknown as GdbClient);
  slices.sight = { witness: WITNESS, visited: VISITED };
  return slices;
};

describe('a stop of a guest whose kernel is hidden', () => {
  it('is made where a CPU comes into the kernel, by a breakpoint of the processor that does not stay', async () => {
    const guest = new HiddenGuest();
    expect(await slicesOf(guest).stopAndRead([{ address: WITNESS, sizeBytes: 1 }])).toEqual([
      Uint8Array.of(7),
    ]);
    expect(guest.isRunning).toBe(false);
    expect(guest.changes).toEqual([
      { kind: 'insertBreakpoint', address: VISITED, isHardware: true },
      { kind: 'removeBreakpoint', address: VISITED, isHardware: true },
    ]);
  });

  it('is given up when none does, and no breakpoint stays', async () => {
    const guest = new HiddenGuest();
    guest.ticks = false;
    await expect(slicesOf(guest).stop()).rejects.toMatchObject({ code: 'guest-memory' });
    expect(guest.changes.length).toBeGreaterThan(0);
    expect(guest.changes.at(-1)).toMatchObject({ kind: 'removeBreakpoint' });
  });

  it('is only tried again where the stub has no such breakpoints', async () => {
    const guest = new HiddenGuest();
    guest.refusal = new LivegraftError('gdb-protocol', 'breakpoint: it answers nothing');
    await expect(slicesOf(guest).stop()).rejects.toMatchObject({ code: 'guest-memory' });
    guest.refusal = new LivegraftError('gdb-timeout', 'no answer');
    guest.resume();
    await expect(slicesOf(guest).stop()).rejects.toMatchObject({ code: 'gdb-timeout' });
  });
});
