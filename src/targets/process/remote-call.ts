import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import type { ProcessMemory } from './memory.js';
import * as native from './native.js';
import type { Mapping } from './proc.js';
import * as reg from './registers.js';
import { type PlannedCall, SeccompPolicy } from './seccomp.js';
import { SYS_restart_syscall, SYS_rt_sigreturn } from './syscalls.js';
import type { Tracee, Tracer } from './tracer.js';

/**
 * System calls made by a stopped thread of the target on our behalf.
 *
 * The thread must survive our own death at any instant, also between its hijacking and its restoration. So before
 * its registers are touched, a signal frame with all of them (vector state included) is written below its red zone,
 * and the `syscall` instruction that it is pointed at is followed by `ret` into the C library's `rt_sigreturn`. If we
 * vanish, the thread finishes the call, returns into that frame and goes on as if nothing had been. If we don't,
 * the registers are put back through ptrace and the frame is never used.
 */
export class RemoteCaller {
  readonly #tracer: Tracer;
  readonly #tracee: Tracee;
  readonly #landing: Landing;
  readonly #saved: Buffer;
  readonly #savedMask: Buffer;
  readonly #frame: number;
  readonly #scratch: number;
  readonly #memory: ProcessMemory;
  readonly #policy: SeccompPolicy;
  #hijacked = false;

  /**
   * `tracee` must be stopped. `calls` lists every call that will be made, as far as it is known: a seccomp filter that would
   * refuse or kill is found here, before anything is changed.
   */
  constructor(
    tracer: Tracer,
    tracee: Tracee,
    memory: ProcessMemory,
    landing: Landing,
    calls: readonly PlannedCall[],
  ) {
    this.#tracer = tracer;
    this.#tracee = tracee;
    this.#memory = memory;
    this.#landing = landing;
    this.#policy = SeccompPolicy.of(tracee);
    for (const call of calls) this.#policy.expectAllowed(call, landing.syscall);
    this.#policy.expectAllowed({ number: SYS_rt_sigreturn }, landing.sigreturn);
    if (!tracer.fetchRegisters(tracee)) throw goneError(tracee);
    this.#saved = Buffer.from(tracee.registers);
    this.#savedMask = native.getSignalMask(tracee.tid);
    const extended = native.getExtendedState(tracee.tid);
    const stackPointer = reg.readRegister(this.#saved, reg.RSP);
    // From the top: red zone, scratch bytes for arguments, vector state (64-aligned), frame (16-aligned).
    this.#scratch = Math.floor((stackPointer - reg.RED_ZONE_BYTES - SCRATCH_BYTES) / 64) * 64;
    const vector = this.#scratch - Math.ceil((extended.length + 4) / 64) * 64;
    this.#frame = vector - FRAME_BYTES;
    const bytes = Buffer.alloc(this.#scratch - this.#frame);
    encodeSignalFrame(
      bytes,
      this.#saved,
      this.#savedMask,
      extended,
      this.#landing.sigreturn,
      vector,
      vector - this.#frame,
    );
    try {
      memory.write(this.#frame, bytes);
    } catch (cause) {
      throw new LivegraftError(
        'no-stack-room',
        `thread ${tracee.tid}: no ${bytes.length} bytes of stack below ${hex(stackPointer)}`,
        { remedy: 'try again when another thread can be borrowed', details: { tid: tracee.tid }, cause },
      );
    }
  }

  /** Bytes that calls may point to, at most 256, NUL-terminated by the caller where needed. Returns their address. */
  placeArgument(bytes: Uint8Array): number {
    if (bytes.length > SCRATCH_BYTES) throw new RangeError('argument is too long');
    this.#memory.write(this.#scratch, bytes);
    return this.#scratch;
  }

  /**
   * Makes one system call; returns its result, negative errno included. Up to six integer arguments. Throws
   * `seccomp-forbids` in place of a call that a filter would not let through.
   */
  call(number: number, ...args: readonly number[]): number {
    this.#policy.expectAllowed({ number, args }, this.#landing.syscall);
    const registers = Buffer.from(this.#saved);
    reg.writeRegister(registers, reg.RAX, number);
    reg.writeRegister(registers, reg.ORIG_RAX, -1);
    ARGUMENTS.forEach((index, i) => {
      reg.writeRegister(registers, index, args[i] ?? 0);
    });
    reg.writeRegister(registers, reg.RIP, this.#landing.syscall);
    reg.writeRegister(registers, reg.RSP, this.#frame);
    native.setRegisters(this.#tracee.tid, registers);
    if (!this.#hijacked) {
      this.#hijacked = true;
      // Only now: a mask that outlives us in an unhijacked thread would stay for good.
      native.setSignalMask(this.#tracee.tid, ALL_SIGNALS);
    }
    // One stop at the entry, one at the exit.
    for (let entered = false, stops = 0; ; stops++) {
      const stop = this.#tracer.runToSyscallStop(this.#tracee, STEP_TIMEOUT_MS);
      if (this.#tracee.state === 'gone' || !this.#tracer.fetchRegisters(this.#tracee))
        throw goneError(this.#tracee);
      if (stop.kind === 'syscallStop') {
        if (entered) break;
        entered = true;
      } else if (stops > 16) {
        // Stops that are not ours (a group stop, the rest of an interrupt) may come between, but not for ever.
        const at = hex(reg.readRegister(this.#tracee.registers, reg.RIP));
        throw new LivegraftError(
          'remote-call-lost',
          `thread ${this.#tracee.tid} stopped at ${at} in a remote call`,
          {
            details: { tid: this.#tracee.tid, syscall: number },
          },
        );
      }
    }
    return reg.readRegister(this.#tracee.registers, reg.RAX);
  }

  /**
   * Leads the thread into code made by `encodeBorrowedCall` at `at`, and returns when it is about to come back by itself:
   * {@link restore} brings it back. `returningAt` is where it then is. The other threads go on meanwhile. Throws
   * `callback-crashed` for a signal that only a fault sends, and `callback-stuck` when time is over.
   */
  runBorrowedCall(at: number, returningAt: number, timeoutMs: number): void {
    const { tid } = this.#tracee;
    const registers = Buffer.from(this.#saved);
    reg.writeRegister(registers, reg.ORIG_RAX, -1);
    reg.writeRegister(registers, reg.RIP, at);
    reg.writeRegister(registers, reg.RSP, this.#frame);
    // As the psABI has it at the entry of a function, and no trap behind its first instruction.
    const flags = reg.readRegister(registers, reg.EFLAGS);
    reg.writeRegister(registers, reg.EFLAGS, flags & ~(DIRECTION_FLAG | TRAP_FLAG));
    native.setRegisters(tid, registers);
    this.#hijacked = true;
    native.setSignalMask(tid, ALL_BUT_FAULTS);
    this.#tracee.isBorrowed = true;
    try {
      const until = performance.now() + timeoutMs;
      for (;;) {
        const stop = this.#tracer.runBesideOthers(this.#tracee, until - performance.now());
        if (this.#tracee.state === 'gone') throw goneError(this.#tracee);
        if (stop === undefined || !this.#tracer.fetchRegisters(this.#tracee)) {
          throw new LivegraftError(
            'callback-stuck',
            `it has not returned in ${timeoutMs / 1000} s; its thread, ${tid}, goes on where it was`,
            {
              remedy: 'a callback may take no lock that a waiting thread of the program can hold',
              details: { tid },
            },
          );
        }
        const pc = reg.readRegister(this.#tracee.registers, reg.RIP);
        if (stop.kind === 'signalStop' && isFault(stop.signal)) {
          throw new LivegraftError(
            'callback-crashed',
            `it failed with signal ${stop.signal} at ${hex(pc)}; its thread, ${tid}, goes on where it was`,
            {
              remedy: 'mend the callback: what it had changed until then stays changed',
              details: { tid, signal: stop.signal, pc: hex(pc) },
            },
          );
        }
        if (stop.kind === 'syscallStop' && pc === returningAt) break;
      }
    } finally {
      this.#tracee.isBorrowed = false;
    }
    // Passed over: the registers come back through ptrace.
    native.pokeRegister(tid, reg.ORIG_RAX, -1);
  }

  /**
   * Puts the thread back where it was. Safe to call twice.
   *
   * The kernel restarts an interrupted system call only on its way out of a signal or trap, not out of a system-call
   * stop. So the thread is led into a trap while it is still hijacked, and gets its registers back there.
   */
  restore(): void {
    if (!this.#hijacked || this.#tracee.state !== 'stopped') return;
    this.#tracee.stop = { kind: 'interruptStop' };
    this.#tracee.syscallStopsWanted = 0;
    // The stop at which it is now does not count: the one that the interrupt brings is wanted.
    do {
      this.#tracer.leadIntoTrap(this.#tracee, STEP_TIMEOUT_MS);
    } while (this.#tracee.state === 'stopped' && !isTrap(this.#tracee));
    if (this.#tracee.state !== 'stopped') return;
    native.setSignalMask(this.#tracee.tid, this.#savedMask);
    native.setRegisters(this.#tracee.tid, this.#saved);
    this.#saved.copy(this.#tracee.registers);
    this.#hijacked = false;
  }
}

function isFault(signal: number): boolean {
  return FAULTS.includes(signal);
}

function isTrap(tracee: Tracee): boolean {
  return tracee.stop.kind === 'interruptStop' || tracee.stop.kind === 'groupStop';
}

/** Addresses of instructions in the target that a remote call needs. */
export interface Landing {
  /** `syscall; ret`. */
  readonly syscall: number;
  /** `mov $15, %eax; syscall`: `rt_sigreturn`. */
  readonly sigreturn: number;
}

const ARGUMENTS = [reg.RDI, reg.RSI, reg.RDX, reg.R10, reg.R8, reg.R9] as const;
const ALL_SIGNALS = Buffer.alloc(8, 0xff);
/** SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV: the kernel kills a thread that blocks the one it has earned. */
const FAULTS = [4, 5, 7, 8, 11];
const ALL_BUT_FAULTS = Buffer.alloc(8);
ALL_BUT_FAULTS.writeBigUInt64LE(
  FAULTS.reduce((mask, signal) => mask & ~(1n << BigInt(signal - 1)), 2n ** 64n - 1n),
);
const DIRECTION_FLAG = 0x400;
const TRAP_FLAG = 0x100;
const SCRATCH_BYTES = 256;
const STEP_TIMEOUT_MS = 5000;

const SYSCALL_RET = Buffer.from([0x0f, 0x05, 0xc3]);
const SIGRETURN_FORMS = [
  Buffer.from([0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05]),
  Buffer.from([0xb8, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05]),
];

/** Searches the target's code, the C library first. Throws `no-landing` when it has none. */
export function findLanding(memory: ProcessMemory, mappings: readonly Mapping[]): Landing {
  const candidates = mappings
    .filter((m) => m.executable && m.readable && m.name !== '' && !m.name.startsWith('[vsyscall'))
    .sort((a, b) => landingRank(a) - landingRank(b));
  let syscall: number | undefined;
  let sigreturn: number | undefined;
  for (const mapping of candidates) {
    const code = Buffer.alloc(Math.min(mapping.end - mapping.start, MAX_SEARCH_BYTES));
    const count = memory.read(mapping.start, code);
    const text = code.subarray(0, count);
    const call = text.indexOf(SYSCALL_RET);
    if (syscall === undefined && call >= 0) syscall = mapping.start + call;
    for (const form of SIGRETURN_FORMS) {
      const at = text.indexOf(form);
      if (sigreturn === undefined && at >= 0) sigreturn = mapping.start + at;
    }
    if (syscall !== undefined && sigreturn !== undefined) return { syscall, sigreturn };
  }
  throw new LivegraftError(
    'no-landing',
    `process ${memory.pid}: its code holds no 'syscall; ret' and rt_sigreturn that a borrowed thread could return through`,
    { remedy: 'livegraft needs a target linked with a common C library (glibc, musl), statically or not' },
  );
}

const MAX_SEARCH_BYTES = 64 * 1024 * 1024;

function landingRank(mapping: Mapping): number {
  return /\/(libc|ld-musl)[.-][^/]*$/.test(mapping.name) ? 0 : 1;
}

function goneError(tracee: Tracee): LivegraftError {
  return new LivegraftError('target-gone', `thread ${tracee.tid} ended while it was being borrowed`, {
    remedy: 'start again with the pid of the running program',
    details: { tid: tracee.tid },
  });
}

/** `struct rt_sigframe` up to the signal mask (arch/x86/include/asm/sigframe.h, uapi/asm/sigcontext.h). */
const FRAME_BYTES = 320;
const FP_XSTATE_MAGIC1 = 0x46505853;
const FP_XSTATE_MAGIC2 = 0x46505845;
const SW_RESERVED_OFFSET = 464;

function encodeSignalFrame(
  into: Buffer,
  registers: Buffer,
  mask: Buffer,
  extended: Buffer,
  sigreturn: number,
  vectorAddress: number,
  vectorOffset: number,
): void {
  const UC_FLAGS = 8;
  const UC_STACK_FLAGS = 32;
  const MCONTEXT = 48;
  const FPSTATE_POINTER = 232;
  const SIGMASK = 304;
  reg.writeRegister(into, 0, sigreturn);
  // UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
  into.writeBigUInt64LE(7n, UC_FLAGS);
  // Invalid on purpose: rt_sigreturn then leaves the alternate stack, which can't be read from outside, as it is.
  into.writeUInt32LE(0xffff, UC_STACK_FLAGS);
  const resumed = withSyscallRestarted(registers);
  MCONTEXT_ORDER.forEach((index, i) => {
    resumed.copy(into, MCONTEXT + i * 8, index * 8, index * 8 + 8);
  });
  const segments = MCONTEXT + MCONTEXT_ORDER.length * 8;
  into.writeUInt16LE(registers.readUInt16LE(reg.CS * 8), segments);
  into.writeUInt16LE(registers.readUInt16LE(reg.SS * 8), segments + 6);
  into.writeBigUInt64LE(BigInt(vectorAddress), FPSTATE_POINTER);
  mask.copy(into, SIGMASK);

  extended.copy(into, vectorOffset);
  const software = vectorOffset + SW_RESERVED_OFFSET;
  const features = extended.readBigUInt64LE(SW_RESERVED_OFFSET);
  into.writeUInt32LE(FP_XSTATE_MAGIC1, software);
  into.writeUInt32LE(extended.length + 4, software + 4);
  into.writeBigUInt64LE(features, software + 8);
  into.writeUInt32LE(extended.length, software + 16);
  into.writeUInt32LE(FP_XSTATE_MAGIC2, vectorOffset + extended.length);
}

const MCONTEXT_ORDER = [
  reg.R8,
  reg.R9,
  reg.R10,
  reg.R11,
  reg.R12,
  reg.R13,
  reg.R14,
  reg.R15,
  reg.RDI,
  reg.RSI,
  reg.RBP,
  reg.RBX,
  reg.RDX,
  reg.RAX,
  reg.RCX,
  reg.RSP,
  reg.RIP,
  reg.EFLAGS,
] as const;

/**
 * The registers with an interrupted system call set up to be made again, as the kernel would do on its way out
 * (arch_do_signal_or_restart): a signal frame has no other way to say "restart". A timed wait starts over, since
 * rt_sigreturn forgets how much of it was left; only a wait that had been continued before can't be, and ends with EINTR.
 */
function withSyscallRestarted(registers: Buffer): Buffer {
  const result = Buffer.from(registers);
  const number = reg.readRegister(registers, reg.ORIG_RAX);
  const outcome = reg.readRegister(registers, reg.RAX);
  // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK
  if (number < 0 || ![-512, -513, -514, -516].includes(outcome)) return result;
  if (number === SYS_restart_syscall) {
    reg.writeRegister(result, reg.RAX, -4);
    return result;
  }
  reg.writeRegister(result, reg.RAX, number);
  reg.writeRegister(result, reg.RIP, reg.readRegister(registers, reg.RIP) - 2);
  return result;
}
