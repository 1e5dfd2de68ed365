import { LivegraftError } from '../../base/errors.js';
import { type CallPlaces, PARKING_BYTES } from './call-places.js';
import type { GdbClient, GuestChange } from './gdb-client.js';
import { isMemoryError } from './gdb-memory.js';
import type { GuestRegisters } from './guest-registers.js';
import { GuestRouser } from './guest-rouser.js';
import { WAY_BACK } from './kernel-trampoline.js';

/** Registers that a call changes; the others belong to the CPU that a task happens to have. */
const GENERAL = 'rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip eflags'.split(' ');
const ARGUMENTS = ['rdi', 'rsi', 'rdx', 'rcx'] as const;
/** In front of the saved registers on a borrowed stack: how far the borrowing has come. */
const Phase = {
  /** "lgborrow": the task is where it was. */
  saved: 0x776f72726f62676cn,
  /** "lgcalled": it is sent to a function. (Where two packets can't go together: or will be with the next one.) */
  called: 0x64656c6c6163676cn,
  /** "lggiving": it is given back. (Or will be.) */
  givenBack: 0x676e69766967676cn,
} as const;
/** Room left between a borrowed task's stack and what is put below it. */
const STACK_GAP_BYTES = 512;
/** How long a function that is called in the guest may take: an allocator may wait for memory. */
const CALL_TIMEOUT_MS = 20_000;
/** How long a task is looked for that may have been given back: one that was not waits in a loop and needs no time. */
const GIVEN_BACK_TIMEOUT_MS = 500;
/** Behind this a guest in which no task makes a system call is woken, and again as often. */
const ROUSE_AFTER_MS = 250;
const INTERRUPTS_ON = 0x200n;
const DIRECTION_FLAG = 0x400n;

/** Keeps in the guest where a borrowed task's registers are, so that a later livegraft can give them back. */
export interface BorrowRecord {
  /** Address of the saved registers, 0 for none. */
  noteBorrowed(frame: number): Promise<void>;
}

/** Calls a function of the kernel with up to four arguments; its result is what it leaves in RAX. */
export type GuestCall = (address: number, ...args: readonly number[]) => Promise<bigint>;

/** A vCPU that has a borrowed task, and the registers that it has now. */
export interface Borrowed {
  readonly vcpu: string;
  readonly registers: GuestRegisters;
}

/** Calls functions of a kernel in a task that is borrowed where a kernel module would be allowed to call them. */
export class GuestCalls {
  readonly #client: GdbClient;
  readonly #record: BorrowRecord;
  readonly #safePoints: readonly number[];
  readonly #parking: number;
  readonly #rouser: GuestRouser | undefined;

  constructor(client: GdbClient, record: BorrowRecord, { safePoint, parking, rouse }: CallPlaces) {
    this.#client = client;
    this.#record = record;
    this.#safePoints = [safePoint, ...(rouse?.awake ?? [])];
    this.#parking = parking;
    // Without physical memory no interrupt can be sent.
    this.#rouser = rouse && client.hasPhysicalMemory ? new GuestRouser(client, rouse) : undefined;
  }

  /**
   * Waits until a task of the guest begins a system call, or wakes kthreadd where none does; lets `use` call kernel functions there (interrupts on, nothing
   * locked, sleeping allowed), and gives the task back as it was. The guest is stopped before and after.
   * Rejects with `no-safe-point` when neither comes about in time.
   */
  async borrow<T>(timeoutMs: number, use: (call: GuestCall) => Promise<T>): Promise<T> {
    let at = await this.#waitForSafePoint(timeoutMs);
    const saved = at.registers;
    const frame = await this.#save(saved);
    // A task that has not come back from a call may sleep: its CPU is another task's by then. The record stays.
    let isAway = false;
    try {
      return await use(async (address, ...args) => {
        isAway = true;
        at = await this.#call(at, frame, address, args);
        isAway = false;
        return at.registers.get('rax');
      });
    } finally {
      if (isAway) await this.#client.removeBreakpoints([this.#parking]);
      else await this.#giveBack(at, saved, frame, [this.#parking]);
    }
  }

  /**
   * Leads a task from where {@link borrow} would take it to code that brings it back by itself ({@link encodeCallAndReturn}), whatever
   * becomes of this process. `note` makes the change that says so, given the stack pointer that the task has there; it is made in the same moment
   * ({@link GdbClient.change}). `check` may refuse while nothing has been changed. The guest is stopped before and after.
   */
  async lead(
    timeoutMs: number,
    to: number,
    check: () => Promise<void>,
    note: (stackPointer: number) => GuestChange,
  ): Promise<void> {
    const at = await this.#waitForSafePoint(timeoutMs);
    const breakpoints = [...this.#safePoints, this.#parking];
    try {
      await check();
    } catch (error) {
      await this.#client.removeBreakpoints(breakpoints);
      throw error;
    }
    await this.#client.change([
      ...breakpoints.map((address): GuestChange => ({ kind: 'removeBreakpoint', address })),
      ...leadAway(at, to, note),
    ]);
  }

  /** Gives a task back that a livegraft borrowed which did not live to do so. */
  async recover(frame: number): Promise<void> {
    const header = await this.#readHeader(frame);
    if (header?.phase === Phase.called || header?.phase === Phase.givenBack) {
      const bytes = await this.#client.readMemory(frame + 16, header.sizeBytes);
      const [anyVcpu] = await this.#client.vcpus();
      const saved = (await this.#client.readRegisters(anyVcpu as string)).withBytes(bytes);
      const parked = (await this.#isAt(saved)) ? undefined : await this.#findParked(frame, header.phase);
      if (parked !== undefined) return this.#giveBack(parked, saved, frame, []);
    }
    await this.#record.noteBorrowed(0);
  }

  /** Undefined when the stack is gone that the frame lay on: its task has ended, so it had been given back. */
  async #readHeader(
    frame: number,
  ): Promise<{ readonly phase: bigint; readonly sizeBytes: number } | undefined> {
    try {
      const header = await this.#client.readMemory(frame, 16);
      const view = new DataView(header.buffer, header.byteOffset, 16);
      return { phase: view.getBigUint64(0, true), sizeBytes: Number(view.getBigUint64(8, true)) };
    } catch (error) {
      if (!isMemoryError(error)) throw error;
      // Where the kernel's text can't be read either, the answer says nothing about the stack.
      await this.#client.readMemory(this.#parking, PARKING_BYTES);
      return undefined;
    }
  }

  /** Where a borrowed task waits to be given back; undefined when it was given back already. */
  async #findParked(frame: number, phase: bigint): Promise<Borrowed | undefined> {
    await this.#client.insertBreakpoints([this.#parking]);
    try {
      return (
        (await this.#atParking(frame, await this.#client.vcpus())) ??
        (await this.#waitForReturn(frame, phase === Phase.called ? CALL_TIMEOUT_MS : GIVEN_BACK_TIMEOUT_MS))
      );
    } catch (error) {
      const isStuck = error instanceof LivegraftError && error.code === 'guest-call-stuck';
      if (isStuck && phase === Phase.givenBack) return undefined;
      throw error;
    } finally {
      await this.#client.removeBreakpoints([this.#parking]);
    }
  }

  /** Whether a CPU stands where a task was borrowed: it was not sent away yet, or has been given back. */
  async #isAt(saved: GuestRegisters): Promise<boolean> {
    for (const vcpu of await this.#client.vcpus()) {
      const registers = await this.#client.readRegisters(vcpu);
      if (['rip', 'rsp'].every((name) => registers.get(name) === saved.get(name))) return true;
    }
    return false;
  }

  /** Leaves breakpoints where calls return to and at the safe points. */
  async #waitForSafePoint(timeoutMs: number): Promise<Borrowed> {
    const places = [...this.#safePoints, this.#parking];
    await this.#client.insertBreakpoints(places);
    const deadline = performance.now() + timeoutMs;
    const leftMs = () => Math.max(1, deadline - performance.now());
    try {
      for (;;) {
        this.#client.resume();
        const patienceMs = this.#rouser === undefined ? leftMs() : Math.min(leftMs(), ROUSE_AFTER_MS);
        const stop = await this.#client.waitForStop(patienceMs);
        if (stop === undefined) {
          await this.#client.interrupt();
          if (performance.now() >= deadline) throw noSafePoint(timeoutMs);
          await this.#rouser?.rouse(leftMs());
          continue;
        }
        if (stop.kind === 'exited') throw guestEnded(stop.detail);
        const registers = await this.#client.readRegisters(stop.vcpu);
        const isThere = this.#safePoints.includes(registers.address('rip'));
        if (isThere && (registers.get('eflags') & INTERRUPTS_ON) !== 0n)
          return { vcpu: stop.vcpu, registers };
      }
    } catch (error) {
      await this.#client.removeBreakpoints(places);
      throw error;
    }
  }

  /** Puts the registers below the task's stack, and says in the guest where they are. */
  async #save(saved: GuestRegisters): Promise<number> {
    const bytes = saved.toBytes();
    const frame = Math.floor((saved.address('rsp') - STACK_GAP_BYTES - bytes.length - 16) / 64) * 64;
    const content = new Uint8Array(16 + bytes.length);
    const view = new DataView(content.buffer);
    view.setBigUint64(0, Phase.saved, true);
    view.setBigUint64(8, BigInt(bytes.length), true);
    content.set(bytes, 16);
    await this.#client.change([
      ...this.#safePoints.map((address): GuestChange => ({ kind: 'removeBreakpoint', address })),
      { kind: 'write', address: frame, bytes: content },
    ]);
    await this.#record.noteBorrowed(frame);
    return frame;
  }

  /** What a task is sent to, and that it was: one is never true without the other. */
  async #send(
    phase: bigint,
    frame: number,
    at: Borrowed,
    before: readonly GuestChange[],
    behind: readonly GuestChange[],
  ): Promise<void> {
    await this.#client.change([
      ...before,
      { kind: 'write', address: frame, bytes: word(phase) },
      { kind: 'registers', ...at },
      ...behind,
    ]);
  }

  async #call(
    { vcpu, registers }: Borrowed,
    frame: number,
    address: number,
    args: readonly number[],
  ): Promise<Borrowed> {
    const values = Object.fromEntries(args.map((value, i) => [ARGUMENTS[i] as string, value]));
    const eflags = registers.get('eflags') & ~DIRECTION_FLAG;
    const sent = registers.with({ ...values, rax: 0, rip: address, rsp: frame - 8, eflags });
    const returnTo: GuestChange = {
      kind: 'write',
      address: frame - 8,
      bytes: word(BigInt.asUintN(64, BigInt(this.#parking))),
    };
    await this.#send(Phase.called, frame, { vcpu, registers: sent }, [returnTo], []);
    return this.#waitForReturn(frame, CALL_TIMEOUT_MS);
  }

  /** With a breakpoint where calls return to. */
  async #waitForReturn(frame: number, timeoutMs: number): Promise<Borrowed> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      this.#client.resume();
      const stop = await this.#client.waitForStop(Math.max(1, deadline - performance.now()));
      if (stop?.kind === 'exited') throw guestEnded(stop.detail);
      if (stop === undefined) {
        await this.#client.interrupt();
        throw new LivegraftError(
          'guest-call-stuck',
          `a kernel function that was called in the guest does not return`,
          {
            remedy: 'see whether the guest has memory left; the next livegraft command waits for it again',
          },
        );
      }
      const returned = await this.#atParking(frame, [stop.vcpu]);
      if (returned !== undefined) return returned;
    }
  }

  /** Which of some vCPUs has a borrowed task that waits for what comes next. */
  async #atParking(frame: number, vcpus: readonly string[]): Promise<Borrowed | undefined> {
    for (const [index, registers] of (await this.#client.readAllRegisters(vcpus)).entries()) {
      const rip = registers.address('rip');
      if (rip >= this.#parking && rip <= this.#parking + PARKING_BYTES && registers.address('rsp') === frame)
        return { vcpu: vcpus[index] as string, registers };
    }
    return undefined;
  }

  async #giveBack(
    { vcpu, registers }: Borrowed,
    saved: GuestRegisters,
    frame: number,
    breakpoints: readonly number[],
  ): Promise<void> {
    const before = registers.with(Object.fromEntries(GENERAL.map((name) => [name, saved.get(name)])));
    const behind = breakpoints.map((address): GuestChange => ({ kind: 'removeBreakpoint', address }));
    await this.#send(Phase.givenBack, frame, { vcpu, registers: before }, [], behind);
    await this.#record.noteBorrowed(0);
  }
}

/**
 * Leads a task that stands where it may be borrowed to code that brings it back by itself ({@link encodeCallAndReturn}). `note` makes the change
 * that says so, given the stack pointer that the task has there. All of it is for one {@link GdbClient.change}.
 */
export function leadAway(
  { vcpu, registers }: Borrowed,
  to: number,
  note: (stackPointer: number) => GuestChange,
): readonly GuestChange[] {
  // Below it lies the place of the call's return address: until it is called, where it has been led.
  const wayBack = new Uint8Array(8 + WAY_BACK.length * 8);
  const view = new DataView(wayBack.buffer);
  view.setBigInt64(0, BigInt(to), true);
  WAY_BACK.forEach((name, i) => {
    view.setBigUint64(8 + i * 8, registers.get(name), true);
  });
  const top = registers.address('rsp') - STACK_GAP_BYTES - wayBack.length;
  const stackPointer = Math.floor(top / 64) * 64;
  const eflags = registers.get('eflags') & ~DIRECTION_FLAG;
  return [
    { kind: 'write', address: stackPointer - 8, bytes: wayBack },
    note(stackPointer),
    { kind: 'registers', vcpu, registers: registers.with({ rip: to, rsp: stackPointer, eflags }) },
  ];
}

function word(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

export function guestEnded(detail: string): LivegraftError {
  return new LivegraftError('target-gone', `the guest has ended (${detail})`, {
    remedy: 'nothing was left behind: a guest that starts again has its original kernel',
  });
}

function noSafePoint(timeoutMs: number): LivegraftError {
  return new LivegraftError('no-safe-point', `no task of the guest made a system call in ${timeoutMs} ms`, {
    remedy: 'wake the guest (a ping, a key), or give it more time with --timeout',
  });
}
