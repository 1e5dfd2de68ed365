import type { GdbClient, GuestStop } from './gdb-client.js';
import { addressOf } from './kernel-layout.js';

/** Addresses in the running kernel by which its thread kthreadd is woken. All are there from 5.10 on. */
export interface RousePlaces {
  /** The variable `kthreadd_task`. */
  readonly thread: number;
  /**
   * Where kthreadd goes on behind `schedule()`: in process context, interrupts on, nothing locked, and any wake-up is one too many
   * at worst (kernel/kthread.c: it looks at a list, and sleeps again).
   */
  readonly awake: readonly number[];
  /** `irq_work_run`, which takes no argument, and where the handler of its interrupt goes on behind it. */
  readonly interrupt: number;
  readonly interruptReturns: readonly number[];
  /** `wake_up_process` */
  readonly wake: number;
}

/** `IRQ_WORK_VECTOR` (arch/x86/include/asm/irq_vectors.h, the same since 2.6.37). With nothing to do its handler does nothing. */
const IRQ_WORK_VECTOR = 0xf6;
/** A write here is a message-signalled interrupt for the processor with APIC id 0 (Intel SDM volume 3, section 11.11). */
const MESSAGE_ADDRESS = 0xfee0_0000;
/** How long the interrupt may take: the processor may have turned interrupts off, or wait for one that runs on this machine. */
const INTERRUPT_TIMEOUT_MS = 2000;
const INTERRUPTS_ON = 0x200n;

/**
 * Wakes a thread of a guest that does nothing at all: an interrupt is sent as a device would, and `wake_up_process` is called in
 * it, in front of what the handler does itself, where the kernel's own users of such interrupts wake tasks. It
 * returns to the handler, so that nothing waits for livegraft should that be killed. Takes a stub with physical memory access (QEMU).
 */
export class GuestRouser {
  readonly #client: GdbClient;
  readonly places: RousePlaces;

  constructor(client: GdbClient, places: RousePlaces) {
    this.#client = client;
    this.places = places;
  }

  /** Of a stopped guest, which it leaves stopped: with the thread awake, at another breakpoint, or unchanged after a time. */
  async rouse(timeoutMs: number): Promise<void> {
    const { interrupt, interruptReturns } = this.places;
    await this.#client.writePhysical(MESSAGE_ADDRESS, Uint8Array.of(IRQ_WORK_VECTOR, 0, 0, 0));
    await this.#client.insertBreakpoints([interrupt]);
    let isInserted = true;
    try {
      const deadline = performance.now() + Math.min(timeoutMs, INTERRUPT_TIMEOUT_MS);
      for (;;) {
        this.#client.resume();
        const stop = await this.#client.waitForStop(Math.max(1, deadline - performance.now()));
        if (stop === undefined) {
          await this.#client.interrupt();
          return;
        }
        // Whoever waits for it sees it again when the guest goes on.
        if (stop.kind === 'exited' || !(await this.#isAt(stop, interrupt))) return;
        if (await this.#wakeFrom(stop.vcpu, interruptReturns)) {
          isInserted = false;
          return;
        }
        await this.#client.removeBreakpoints([interrupt]);
        isInserted = false;
        await this.#client.step(stop.vcpu);
        await this.#client.insertBreakpoints([interrupt]);
        isInserted = true;
      }
    } finally {
      if (isInserted && !this.#client.isRunning) await this.#client.removeBreakpoints([interrupt]);
    }
  }

  async #isAt(stop: Extract<GuestStop, { kind: 'signal' }>, address: number): Promise<boolean> {
    return (await this.#client.readRegisters(stop.vcpu)).address('rip') === address;
  }

  /** In the handler of the interrupt; others call the same function with locks that it must not find. */
  async #wakeFrom(vcpu: string, callers: readonly number[]): Promise<boolean> {
    const { thread, wake, interrupt } = this.places;
    const registers = await this.#client.readRegisters(vcpu);
    const stack = registers.address('rsp');
    const caller = addressOf(await this.#client.readMemory(stack, 8));
    if (!callers.includes(caller) || (registers.get('eflags') & INTERRUPTS_ON) !== 0n) return false;
    const task = addressOf(await this.#client.readMemory(thread, 8));
    // At its entry a function without arguments expects nothing in registers that a call may change.
    const returnTo = new Uint8Array(8);
    new DataView(returnTo.buffer).setBigInt64(0, BigInt(interrupt), true);
    await this.#client.change([
      { kind: 'write', address: stack - 8, bytes: returnTo },
      { kind: 'registers', vcpu, registers: registers.with({ rdi: task, rip: wake, rsp: stack - 8 }) },
      { kind: 'removeBreakpoint', address: interrupt },
    ]);
    return true;
  }
}
