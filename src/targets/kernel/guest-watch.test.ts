import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import type { MemoryPiece } from './gdb-memory.js';
import { GuestWatch } from './guest-watch.js';
import { KernelRegistryStore } from './kernel-registry.js';
import type { KernelSession } from './kernel-session.js';

const ETEXT = -0x7e1f_e10e;
const PANIC_CPU = -0x7d00_0000;

/** A guest that stands still: its registry's anchor, and which CPU has panicked. */
class Guest {
  readonly bytes = new Map<number, number>();
  panicCpu = -1;
  /** How many more reads fail, as where nothing is mapped. */
  unmapped = 0;
  runs = 0;

  async readMemory(address: number, sizeBytes: number): Promise<Uint8Array> {
    if (address === PANIC_CPU) return new Uint8Array(Int32Array.of(this.panicCpu).buffer);
    return Uint8Array.from({ length: sizeBytes }, (_, i) => this.bytes.get(address + i) ?? 0);
  }

  stopAndRead(pieces: readonly MemoryPiece[]): Promise<readonly Uint8Array[]> {
    if (this.unmapped-- > 0) return Promise.reject(new LivegraftError('guest-memory', 'not mapped'));
    return Promise.all(pieces.map(({ address, sizeBytes }) => this.readMemory(address, sizeBytes)));
  }

  async writeMemory(address: number, bytes: Uint8Array): Promise<void> {
    bytes.forEach((byte, i) => {
      this.bytes.set(address + i, byte);
    });
  }

  async watch(): Promise<GuestWatch> {
    const store = new KernelRegistryStore(this, this, ETEXT);
    await store.useMemory(-0x3fa0_0000);
    const session = {
      client: this,
      kernel: { find: () => PANIC_CPU },
      stopAndRead: (pieces: readonly MemoryPiece[]) => this.stopAndRead(pieces),
      resume: () => {
        this.runs++;
      },
    };
    return new GuestWatch(session as unknown as KernelSession, store);
  }
}

const ended = (why: string) => ({ code: 'target-gone', message: expect.stringContaining(why) });

describe('GuestWatch', () => {
  it('finds the guest as it was', async () => {
    await expect((await new Guest().watch()).expectAlive()).resolves.toBeUndefined();
  });

  it('says that another instance of the kernel lies where the old one was', async () => {
    const guest = new Guest();
    const watch = await guest.watch();
    guest.bytes.clear();
    await expect(watch.expectAlive()).rejects.toMatchObject(ended('started again'));
  });

  it('says that the kernel has panicked', async () => {
    const guest = new Guest();
    const watch = await guest.watch();
    guest.panicCpu = 1;
    await expect(watch.expectAlive()).rejects.toMatchObject(ended('panicked'));
  });

  it('lets a guest run on in which the kernel is hidden just now, but not for ever', async () => {
    const guest = new Guest();
    const watch = await guest.watch();
    guest.unmapped = 3;
    await watch.expectAlive();
    expect(guest.runs).toBe(3);
    guest.unmapped = 1000;
    await expect(watch.expectAlive()).rejects.toMatchObject(ended('started again'));
  });

  it('explains a failure only where the guest has ended, and only one that it can be the reason of', async () => {
    const guest = new Guest();
    const watch = await guest.watch();
    const fail = (code: string) => () => Promise.reject(new LivegraftError(code, 'x'));
    await expect(watch.explain(fail('no-safe-point'))).rejects.toMatchObject({ code: 'no-safe-point' });
    guest.panicCpu = 0;
    await expect(watch.explain(fail('no-safe-point'))).rejects.toMatchObject(ended('panicked'));
    await expect(watch.explain(fail('gdb-timeout'))).rejects.toMatchObject({ code: 'gdb-timeout' });
  });
});
