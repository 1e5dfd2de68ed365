import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../arch/x86-64/index.js';
import { LivegraftError } from '../../base/errors.js';
import { findCallPlaces } from './call-places.js';
import type { GdbClient, GuestChange } from './gdb-client.js';
import { GuestCalls } from './guest-calls.js';
import { DEFAULT_LAYOUT, GuestRegisters } from './guest-registers.js';
import { WAY_BACK } from './kernel-trampoline.js';
import type { KernelAddresses } from './running-kernel.js';

const TEXT = 0x8100_0000;
const SAFE_POINT = TEXT + 0x100;
const STACK = 0x9000_0000;
const FUNCTION = TEXT + 0x200;
const ELSEWHERE = TEXT + 0x300;
const OTHER_STACK = 0xa000_0000;
const REGISTERS_BYTES = 1024;
const KILLED = 'livegraft was killed';

/** One vCPU that makes system calls, and memory that may go; dies at a given packet that changes the guest. */
class Guest {
  registers = new GuestRegisters(new Uint8Array(REGISTERS_BYTES), DEFAULT_LAYOUT).with({
    rip: TEXT,
    rsp: STACK + 0x4000,
    eflags: 0x202,
  });
  stack: Uint8Array | undefined = new Uint8Array(0x5000);
  borrowed = 0;
  readonly breakpoints = new Set<number>();
  changesLeft = Infinity;

  #change(): void {
    if (this.changesLeft-- <= 0) throw new Error(KILLED);
  }

  #stackAt(address: number, sizeBytes: number): Uint8Array {
    const offset = address - STACK;
    if (this.stack === undefined || offset < 0 || offset + sizeBytes > this.stack.length)
      throw new LivegraftError('guest-memory', 'not mapped');
    return this.stack.subarray(offset, offset + sizeBytes);
  }

  readonly client = {
    readMemory: async (address: number, sizeBytes: number) =>
      address >= TEXT && address < STACK
        ? new Uint8Array(sizeBytes)
        : this.#stackAt(address, sizeBytes).slice(),
    writeMemory: async (address: number, bytes: Uint8Array) => {
      this.#change();
      this.#stackAt(address, bytes.length).set(bytes);
    },
    vcpus: async () => ['1'],
    readRegisters: async () => this.registers,
    readAllRegisters: async () => [this.registers],
    change: async (changes: readonly GuestChange[]) => {
      this.#change();
      for (const change of changes) {
        if (change.kind === 'write') this.#stackAt(change.address, change.bytes.length).set(change.bytes);
        else if (change.kind === 'registers') this.registers = change.registers;
        else if (change.kind === 'insertBreakpoint') this.breakpoints.add(change.address);
        else this.breakpoints.delete(change.address);
      }
    },
    insertBreakpoints: async (addresses: readonly number[]) => {
      for (const address of addresses) this.breakpoints.add(address);
    },
    removeBreakpoints: async (addresses: readonly number[]) => {
      for (const address of addresses) this.breakpoints.delete(address);
    },
    interrupt: async () => {},
    resume: () => this.run(),
    waitForStop: async () =>
      this.breakpoints.has(this.registers.address('rip')) ? { kind: 'stopped', vcpu: '1' } : undefined,
  } as unknown as GdbClient;

  readonly record = {
    noteBorrowed: async (frame: number) => {
      this.#change();
      this.borrowed = frame;
    },
  };

  /** The function that is called sleeps, and its CPU goes to another task. */
  isBusy = false;

  /** A function that was called returns to the loop where it parks; whatever else runs gets to its next system call. */
  run(): void {
    const rsp = this.registers.address('rsp');
    if (this.isBusy && this.borrowed !== 0) {
      this.registers = this.registers.with({ rip: ELSEWHERE, rsp: OTHER_STACK });
    } else if (this.registers.address('rip') === FUNCTION) {
      this.registers = this.registers.with({ rip: TEXT, rsp: rsp + 8 });
    } else if (!this.isParked) this.registers = this.registers.with({ rip: SAFE_POINT });
  }

  get isParked(): boolean {
    return this.borrowed !== 0 && this.registers.address('rsp') === this.borrowed;
  }

  calls(): GuestCalls {
    const kernel = {
      find: (name: string) => (name === 'x64_sys_call' ? SAFE_POINT : undefined),
      relocate: (address: number) => address,
      image: {
        source: 'test',
        symbols: { findUnique: () => undefined },
        text: { address: TEXT, bytes: Uint8Array.of(0xf4, 0xeb, 0xfd) },
      },
    } as unknown as KernelAddresses;
    return new GuestCalls(this.client, this.record, findCallPlaces(kernel, x86_64));
  }

  async borrowAndCall(): Promise<unknown> {
    return await this.calls().borrow(100, (call) => call(FUNCTION));
  }
}

const stackPointer = STACK + 0x4000;

describe('a task that a killed livegraft had borrowed', () => {
  it('is given back, whichever packet was the last, also when the guest ran on', async () => {
    const whole = new Guest();
    whole.changesLeft = 1000;
    await whole.borrowAndCall();
    const packets = 1000 - whole.changesLeft;
    expect(packets).toBeGreaterThan(4);
    for (let last = 0; last < packets; last++) {
      for (const ranOn of [false, true]) {
        const guest = new Guest();
        guest.changesLeft = last;
        await expect(guest.borrowAndCall()).rejects.toThrow(KILLED);
        guest.changesLeft = Infinity;
        if (ranOn) {
          guest.run();
          if (guest.registers.address('rip') === SAFE_POINT)
            guest.registers = guest.registers.with({ rip: ELSEWHERE });
        }
        if (guest.borrowed !== 0) await guest.calls().recover(guest.borrowed);
        expect([guest.borrowed, guest.registers.address('rsp')]).toEqual([0, stackPointer]);
      }
    }
  });

  it('sleeps in a function of the guest: its CPU is left to whom it belongs to, and the record stays', async () => {
    const guest = new Guest();
    guest.isBusy = true;
    await expect(guest.borrowAndCall()).rejects.toMatchObject({ code: 'guest-call-stuck' });
    expect(guest.registers.address('rsp')).toBe(OTHER_STACK);
    const frame = guest.borrowed;
    expect(frame).not.toBe(0);
    // It comes back, and the next livegraft finds it.
    guest.registers = guest.registers.with({ rip: TEXT, rsp: frame });
    await guest.calls().recover(frame);
    expect([guest.borrowed, guest.registers.address('rsp')]).toEqual([0, stackPointer]);
  });

  it('has ended since: its record is cleared', async () => {
    const guest = new Guest();
    guest.borrowed = STACK + 0x3000;
    guest.stack = undefined;
    await guest.calls().recover(guest.borrowed);
    expect(guest.borrowed).toBe(0);
  });
});

describe('a task that is led away', () => {
  const note = (stackPointer: number): GuestChange => ({
    ...{ kind: 'write', address: STACK + 64 },
    bytes: new Uint8Array(new BigUint64Array([BigInt(stackPointer)]).buffer),
  });

  it('has its way back on its stack, and nothing of livegraft is left where it was met', async () => {
    const guest = new Guest();
    const before = guest.registers.with({ rip: SAFE_POINT, r15: 15, cs: 0x10, ss: 0x18 });
    guest.registers = before;
    await guest.calls().lead(100, FUNCTION, async () => {}, note);
    const stackPointer = guest.registers.address('rsp');
    expect(guest.registers.address('rip')).toBe(FUNCTION);
    expect(stackPointer % 16).toBe(0);
    const words = new BigUint64Array(guest.stack?.slice(stackPointer - STACK).buffer as ArrayBuffer, 0, 20);
    expect([...words]).toEqual(WAY_BACK.map((name) => before.get(name)));
    expect(stackPointer + 160).toBeLessThan(before.address('rsp'));
    expect(new BigUint64Array(guest.stack?.slice(64, 72).buffer as ArrayBuffer)[0]).toBe(
      BigInt(stackPointer),
    );
    expect([guest.breakpoints.size, guest.borrowed]).toEqual([0, 0]);
  });

  it('is left alone when something is wrong with the guest', async () => {
    const guest = new Guest();
    const refuse = () => Promise.reject(new LivegraftError('target-gone', 'it started again'));
    await expect(guest.calls().lead(100, FUNCTION, refuse, note)).rejects.toMatchObject({
      code: 'target-gone',
    });
    expect([guest.registers.address('rip'), guest.breakpoints.size]).toEqual([SAFE_POINT, 0]);
  });
});
