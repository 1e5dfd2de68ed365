import { hex } from '../../base/brand.js';
import { LivegraftError } from '../../base/errors.js';
import * as native from './native.js';
import { readThreadStatus } from './proc.js';
import { SYS_mmap } from './syscalls.js';
import type { Tracee } from './tracer.js';

/** Actions of a filter (include/uapi/linux/seccomp.h), by precedence: the lowest signed value wins. */
const SECCOMP_RET_ACTION_FULL = 0xffff0000;
const SECCOMP_RET_ALLOW = 0x7fff0000;
const SECCOMP_RET_LOG = 0x7ffc0000;
const AUDIT_ARCH_X86_64 = 0xc000003e;

/** A system call as it will be made; arguments that are left out are zero. Filters may go by any of them. */
export interface PlannedCall {
  readonly number: number;
  readonly args?: readonly number[];
}

/**
 * The seccomp filters of a stopped thread. They may kill the process for trying, so they are asked by running them here,
 * on our side.
 */
export class SeccompPolicy {
  readonly #tracee: Tracee;
  readonly #filters: readonly Buffer[];

  private constructor(tracee: Tracee, filters: readonly Buffer[]) {
    this.#tracee = tracee;
    this.#filters = filters;
  }

  /** Throws `seccomp-unknown` where they can't be read, and `seccomp-forbids` in the strict mode, which has none. */
  static of(tracee: Tracee): SeccompPolicy {
    const mode = readThreadStatus(tracee.pid, tracee.tid)?.get('Seccomp');
    if (mode === undefined || mode === '0') return new SeccompPolicy(tracee, []);
    if (mode === '1') throw forbidden(tracee, { number: SYS_mmap });
    const filters: Buffer[] = [];
    try {
      for (;;) {
        const filter = native.getSeccompFilter(tracee.tid, filters.length);
        if (filter === undefined) return new SeccompPolicy(tracee, filters);
        filters.push(filter);
      }
    } catch (cause) {
      throw new LivegraftError(
        'seccomp-unknown',
        `process ${tracee.pid}: thread ${tracee.tid} runs under a seccomp filter that can't be read; it may kill the process for mapping memory`,
        {
          remedy: 'run livegraft as root (reading a filter needs CAP_SYS_ADMIN)',
          details: { tid: tracee.tid },
          cause,
        },
      );
    }
  }

  /** Throws `seccomp-forbids` for a call that would be refused, or worse, at the `syscall` instruction that is given. */
  expectAllowed(call: PlannedCall, instruction: number): void {
    const data = seccompData(call, instruction);
    for (const filter of this.#filters) {
      const action = runFilter(filter, data) & SECCOMP_RET_ACTION_FULL;
      if (action !== SECCOMP_RET_ALLOW && action !== SECCOMP_RET_LOG) throw forbidden(this.#tracee, call);
    }
  }
}

function forbidden(tracee: Tracee, { number, args }: PlannedCall): LivegraftError {
  const shown = args === undefined ? '' : ` (arguments ${args.map((value) => hex(value)).join(', ')})`;
  return new LivegraftError(
    'seccomp-forbids',
    `process ${tracee.pid}: a seccomp filter of thread ${tracee.tid} forbids system call ${number}${shown}, which livegraft needs`,
    {
      remedy:
        'allow memfd_create (319), mmap (9; code read-only and executable, data writable), munmap (11), close (3) and rt_sigreturn (15) in the filter of at least one thread, or restart the program with the fix',
      details: { pid: tracee.pid, tid: tracee.tid, syscall: number },
    },
  );
}

/** `struct seccomp_data`. */
export function seccompData({ number, args = [] }: PlannedCall, instruction: number): DataView {
  const data = new DataView(new ArrayBuffer(64));
  data.setInt32(0, number, true);
  data.setUint32(4, AUDIT_ARCH_X86_64, true);
  data.setBigUint64(8, BigInt(instruction), true);
  args.forEach((value, i) => {
    data.setBigUint64(16 + i * 8, BigInt.asUintN(64, BigInt(value)), true);
  });
  return data;
}

/**
 * Classic BPF as seccomp allows it (kernel/seccomp.c, seccomp_check_filter; linux/bpf_common.h). Anything malformed
 * counts as a refusal. Filters can't loop: jumps only go forward.
 */
export function runFilter(program: Buffer, data: DataView): number {
  const REFUSE = 0;
  const scratch = new Uint32Array(16);
  let a = 0;
  let x = 0;
  const count = program.length >> 3;
  for (let pc = 0; pc < count; pc++) {
    const at = pc * 8;
    const code = program.readUInt16LE(at);
    const k = program.readUInt32LE(at + 4);
    const operand = code & 0x08 ? x : k;
    switch (code & 0x07) {
      case 0x00: // BPF_LD
      case 0x01: {
        // BPF_LDX
        const mode = code & 0xe0;
        let value: number;
        if (mode === 0x20 && k + 4 <= data.byteLength) value = data.getUint32(k, true);
        else if (mode === 0x00) value = k;
        else if (mode === 0x60) value = scratch[k & 15] as number;
        else if (mode === 0x80) value = data.byteLength;
        else return REFUSE;
        if ((code & 0x07) === 0) a = value;
        else x = value;
        break;
      }
      case 0x02:
        scratch[k & 15] = a;
        break;
      case 0x03:
        scratch[k & 15] = x;
        break;
      case 0x04: {
        const result = arithmetic(code & 0xf0, a, operand);
        if (result === undefined) return REFUSE;
        a = result;
        break;
      }
      case 0x05: {
        const yes = program.readUInt8(at + 2);
        const no = program.readUInt8(at + 3);
        switch (code & 0xf0) {
          case 0x00:
            pc += k;
            break;
          case 0x10:
            pc += a === operand ? yes : no;
            break;
          case 0x20:
            pc += a > operand ? yes : no;
            break;
          case 0x30:
            pc += a >= operand ? yes : no;
            break;
          case 0x40:
            pc += (a & operand) !== 0 ? yes : no;
            break;
          default:
            return REFUSE;
        }
        break;
      }
      case 0x06:
        return (code & 0x18) === 0x10 ? a : k;
      case 0x07:
        if (code & 0x80) a = x;
        else x = a;
        break;
    }
  }
  return REFUSE;
}

function arithmetic(operation: number, a: number, b: number): number | undefined {
  switch (operation) {
    case 0x00:
      return (a + b) >>> 0;
    case 0x10:
      return (a - b) >>> 0;
    case 0x20:
      return Math.imul(a, b) >>> 0;
    case 0x30:
      return b === 0 ? undefined : Math.floor(a / b);
    case 0x40:
      return (a | b) >>> 0;
    case 0x50:
      return (a & b) >>> 0;
    case 0x60:
      return b > 31 ? undefined : (a << b) >>> 0;
    case 0x70:
      return b > 31 ? undefined : a >>> b;
    case 0x80:
      return -a >>> 0;
    case 0xa0:
      return (a ^ b) >>> 0;
    default:
      return undefined;
  }
}
