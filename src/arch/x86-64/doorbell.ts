import { ByteWriter } from '../../base/byte-writer.js';
import {
  DOORBELL_FIELDS as at,
  DEBUG_STATE,
  DOORBELL_LONGEST_WAITS,
  type DoorbellRequest,
} from '../architecture.js';

const SYS_getpid = 39;
const SYS_kill = 62;
const SYS_futex = 202;
const FUTEX_WAIT_PRIVATE = 128;
const ESRCH = 3;

/** Opcode bytes of `mov %reg, m` and `mov m, %reg` with the RIP-relative ModRM byte: what the system calls need or destroy. */
const SAVED: readonly (readonly [number, number, number])[] = [
  [0x48, 0x89, 0x05], // rax
  [0x48, 0x89, 0x0d], // rcx
  [0x48, 0x89, 0x15], // rdx
  [0x48, 0x89, 0x35], // rsi
  [0x48, 0x89, 0x3d], // rdi
  [0x4c, 0x89, 0x05], // r8
  [0x4c, 0x89, 0x15], // r10
  [0x4c, 0x89, 0x1d], // r11
];

/** See `Redirector.encodeDoorbell`. The stack pointer never moves, so that the unwind row of the entry holds throughout. */
export function encodeDoorbell(request: DoorbellRequest): Uint8Array {
  const out = new ByteWriter(320);
  const exits: number[] = [];
  const returns: number[] = [];
  const emit = (...bytes: number[]) => out.writeBytes(Uint8Array.from(bytes));
  const field = (offset: number, behind = 0) =>
    out.writeI32(request.data + offset - (request.at + out.length + 4 + behind));
  /** A conditional jump with a 32-bit displacement that is filled in later. */
  const branch = (opcode: number, pending: number[]) => {
    emit(0x0f, opcode);
    pending.push(out.length);
    out.writeI32(0);
  };
  const land = (pending: readonly number[]) => {
    for (const place of pending) out.patchU32(place, (out.length - (place + 4)) >>> 0);
  };
  const [EQUAL, DIFFERENT] = [0x84, 0x85];

  emit(0x83, 0x3d); // cmpl $0, armed
  field(at.armed, 1);
  emit(0);
  branch(EQUAL, exits);
  SAVED.forEach(([rex, opcode, operand], index) => {
    emit(rex, opcode, operand);
    field(at.saved + index * 8);
  });
  emit(0x48, 0xb8); // movabs $debugState, %rax
  out.writeU64(request.debugState);
  emit(0x8b, 0x08, 0x89, 0x0d); // mov (%rax), %ecx; mov %ecx, state
  field(at.state);
  emit(0x83, 0xf9, DEBUG_STATE.add); // cmp $RT_ADD, %ecx
  branch(EQUAL, returns);
  emit(0xb8); // mov $getpid, %eax
  out.writeU32(SYS_getpid);
  emit(0x0f, 0x05, 0x3b, 0x05); // syscall; cmp owner, %eax
  field(at.owner);
  branch(DIFFERENT, returns);
  emit(0xf0, 0xff, 0x05); // lock incl rings
  field(at.rings);
  emit(0x41, 0xb8); // mov $waits, %r8d
  out.writeU32(DOORBELL_LONGEST_WAITS);

  const again = out.length;
  const [unknown, gone]: number[][] = [[], []];
  emit(0x8b, 0x3d); // mov watcher, %edi
  field(at.watcher);
  emit(0x85, 0xff); // test %edi, %edi
  branch(EQUAL, unknown as number[]);
  emit(0x31, 0xf6, 0xb8); // xor %esi, %esi; mov $kill, %eax
  out.writeU32(SYS_kill);
  emit(0x0f, 0x05, 0x83, 0xf8, -ESRCH & 0xff); // syscall; cmp $-ESRCH, %eax
  branch(EQUAL, gone as number[]);
  land(unknown as number[]);
  emit(0x8b, 0x15); // mov answered, %edx
  field(at.answered);
  emit(0x3b, 0x15); // cmp rings, %edx
  field(at.rings);
  branch(EQUAL, returns);
  emit(0x83, 0x3d); // cmpl $0, armed
  field(at.armed, 1);
  emit(0);
  branch(EQUAL, returns);
  emit(0x48, 0x8d, 0x3d); // lea answered, %rdi
  field(at.answered);
  emit(0xbe); // mov $FUTEX_WAIT_PRIVATE, %esi
  out.writeU32(FUTEX_WAIT_PRIVATE);
  emit(0x4c, 0x8d, 0x15); // lea timeout, %r10
  field(at.timeout);
  emit(0xb8); // mov $futex, %eax
  out.writeU32(SYS_futex);
  emit(0x0f, 0x05, 0x41, 0xff, 0xc8, 0x0f, DIFFERENT); // syscall; dec %r8d; jne again
  out.writeI32(again - (out.length + 4));
  land(gone as number[]);
  emit(0xc7, 0x05); // movl $0, armed: nobody answers, and the next one need not wait
  field(at.armed, 4);
  out.writeU32(0);
  land(returns);
  SAVED.forEach(([rex, , operand], index) => {
    emit(rex, 0x8b, operand);
    field(at.saved + index * 8);
  });
  land(exits);
  return out.toBytes();
}
