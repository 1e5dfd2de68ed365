import { describe, expect, it } from 'vitest';
import type { GdbClient, GuestChange } from './gdb-client.js';
import { GuestCalls } from './guest-calls.js';
import { DEFAULT_LAYOUT, GuestRegisters } from './guest-registers.js';

const SAFE_POINT = 0x1000;
const PARKING = 0x1100;
const AWAKE = 0x1200;
const INTERRUPT = 0x1300;
const BEHIND_INTERRUPT = 0x1400;
const WAKE = 0x1500;
const ALLOCATE = 0x1600;
const IDLE = 0x1700;
const ELSEWHERE = 0x1800;
const TASK = 0xbeef0;
const THREAD = 0x2000;
const INTERRUPT_STACK = 0x4000;
const THREAD_STACK = 0x6000;
const IDLE_STACK = 0x7000;
const ANSWER = 0x5eedn;

const KILLED = 'livegraft was killed';
const INTERRUPTS_OFF = 0x2;
const INTERRUPTS_ON = 0x202;

/**
 * One vCPU that waits in its idle loop. An interrupt takes it to the handler, which may have been entered from elsewhere before; a task
 * that was woken runs once the handler is through.
 */
class IdleGuest {
  readonly memory = new DataView(new ArrayBuffer(0x8000));
  readonly breakpoints = new Set<number>();
  readonly messages: [number, number[]][] = [];
  registers = new GuestRegisters(new Uint8Array(DEFAULT_LAYOUT.sizeBytes), DEFAULT_LAYOUT);
  borrowed = 0;
  /** How often somebody else calls what the handler does, with a lock held. */
  others = 1;
  #wokenInHandler = false;
  changesLeft = Infinity;

  constructor() {
    this.memory.setBigUint64(THREAD, BigInt(TASK), true);
    this.#at(IDLE, IDLE_STACK, INTERRUPTS_ON);
  }

  #at(rip: number, rsp: number, eflags: number): void {
    this.registers = this.registers.with({ rip, rsp, eflags });
  }

  get place(): [rip: number, rsp: number] {
    return [this.registers.address('rip'), this.registers.address('rsp')];
  }

  #callOf(returnTo: number): void {
    this.memory.setBigUint64(INTERRUPT_STACK, BigInt(returnTo), true);
    this.#at(INTERRUPT, INTERRUPT_STACK, INTERRUPTS_OFF);
  }

  #change(): void {
    if (this.changesLeft-- <= 0) throw new Error(KILLED);
  }

  readonly record = {
    noteBorrowed: async (frame: number) => {
      this.#change();
      this.borrowed = frame;
    },
  };

  calls(): GuestCalls {
    return new GuestCalls(this.client, this.record, {
      ...{ safePoint: SAFE_POINT, parking: PARKING },
      rouse: {
        ...{ thread: THREAD, awake: [AWAKE], interrupt: INTERRUPT },
        ...{ interruptReturns: [BEHIND_INTERRUPT], wake: WAKE },
      },
    });
  }

  /** One step of what the CPU does next. */
  #advance(): void {
    const [rip, rsp] = [this.registers.address('rip'), this.registers.address('rsp')];
    const returnTo = () => Number(this.memory.getBigUint64(rsp, true));
    switch (rip) {
      case WAKE:
        expect(this.registers.address('rdi')).toBe(TASK);
        this.#wokenInHandler = true;
        this.#at(returnTo(), rsp + 8, INTERRUPTS_OFF);
        break;
      case INTERRUPT:
        this.#at(returnTo(), rsp + 8, INTERRUPTS_OFF);
        break;
      case ELSEWHERE:
        this.#callOf(BEHIND_INTERRUPT);
        break;
      case BEHIND_INTERRUPT:
        if (this.#wokenInHandler) this.#at(AWAKE, THREAD_STACK, INTERRUPTS_ON);
        else this.#at(IDLE, IDLE_STACK, INTERRUPTS_ON);
        break;
      case ALLOCATE:
        this.registers = this.registers.with({ rax: ANSWER });
        this.#at(returnTo(), rsp + 8, INTERRUPTS_ON);
        break;
      default:
    }
  }

  readonly client = {
    hasPhysicalMemory: true,
    writePhysical: async (address: number, bytes: Uint8Array) => {
      this.#change();
      this.messages.push([address, [...bytes]]);
      this.#callOf(this.others-- > 0 ? ELSEWHERE : BEHIND_INTERRUPT);
    },
    readMemory: async (address: number, sizeBytes: number) =>
      new Uint8Array(this.memory.buffer.slice(address, address + sizeBytes)),
    readRegisters: async () => this.registers,
    readAllRegisters: async () => [this.registers],
    vcpus: async () => ['1'],
    change: async (changes: readonly GuestChange[]) => {
      this.#change();
      for (const change of changes) {
        if (change.kind === 'write') new Uint8Array(this.memory.buffer).set(change.bytes, change.address);
        else if (change.kind === 'registers') this.registers = change.registers;
        else if (change.kind === 'insertBreakpoint') this.breakpoints.add(change.address);
        else this.breakpoints.delete(change.address);
      }
    },
    insertBreakpoints: async (all: readonly number[]) => {
      for (const address of all) this.breakpoints.add(address);
    },
    removeBreakpoints: async (all: readonly number[]) => {
      for (const address of all) this.breakpoints.delete(address);
    },
    step: async () => this.#advance(),
    interrupt: async () => {},
    resume: () => {},
    waitForStop: async () => {
      for (let steps = 0; steps < 20; steps++) {
        if (this.breakpoints.has(this.registers.address('rip')))
          return { kind: 'signal', signal: 5, vcpu: '1' };
        this.#advance();
      }
      return undefined;
    },
  } as unknown as GdbClient;
}

describe('a guest that does nothing', () => {
  it('is sent an interrupt, in which kthreadd is woken, where functions of the kernel are then called', async () => {
    const guest = new IdleGuest();
    expect(await guest.calls().borrow(1000, (call) => call(ALLOCATE))).toBe(ANSWER);
    // IRQ_WORK_VECTOR, for the processor with APIC id 0.
    expect(guest.messages).toEqual([[0xfee0_0000, [0xf6, 0, 0, 0]]]);
    expect(guest.borrowed).toBe(0);
    expect([...guest.breakpoints]).toEqual([]);
    expect(guest.place).toEqual([AWAKE, THREAD_STACK]);
  });

  it('goes on when livegraft is killed, whichever packet was the last', async () => {
    const whole = new IdleGuest();
    whole.changesLeft = 1000;
    await whole.calls().borrow(1000, (call) => call(ALLOCATE));
    const packets = 1000 - whole.changesLeft;
    expect(packets).toBeGreaterThan(5);
    for (let last = 0; last < packets; last++) {
      const guest = new IdleGuest();
      guest.changesLeft = last;
      await expect(guest.calls().borrow(1000, (call) => call(ALLOCATE))).rejects.toThrow(KILLED);
      guest.changesLeft = Infinity;
      // As the stub does for a guard that connects and detaches.
      guest.breakpoints.clear();
      if (guest.borrowed !== 0) await guest.calls().recover(guest.borrowed);
      await guest.client.waitForStop(0);
      const [rip, rsp] = guest.place;
      expect([IDLE, AWAKE]).toContain(rip);
      expect(rsp).toBe(rip === IDLE ? IDLE_STACK : THREAD_STACK);
    }
  });
});
