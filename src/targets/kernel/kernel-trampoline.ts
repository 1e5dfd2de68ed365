import { BORROWED_CALL_RETURNED } from '../../arch/architecture.js';
import { ByteWriter } from '../../base/byte-writer.js';

export const JUMP_BYTES = 5;
/** Of a direct call with an offset of 4 bytes. */
export const CALL_OPCODE = 0xe8;
/** Of each function's place in a patch's memory: a trampoline, then a copy of displaced instructions. */
export const REDIRECT_BYTES = 128;
const TRAMPOLINE_BYTES = 48;
export const COPY_BYTES = REDIRECT_BYTES - TRAMPOLINE_BYTES;

/** Where the copy of displaced instructions lies. */
export function copyBehind(trampoline: number): number {
  return trampoline + TRAMPOLINE_BYTES;
}

/** What a function with fentry begins with: a nop of 5 bytes, behind an `endbr64` where there is one, or what has become of that. */
const FENTRY_NOPS = [
  [0x0f, 0x1f, 0x44, 0x00, 0x00],
  // What kernels before 5.13 take for some processors (`ideal_nops`; a79f7051cccb made it one for all).
  [0x66, 0x66, 0x66, 0x66, 0x90],
];
/**
 * `endbr64`, and what the kernel writes over it when it starts, where nothing calls the function by its address (`apply_seal_endbr`,
 * since 5.18): `osp nopl (%rax)`, in newer kernels `nopl -42(%rax)` (`gen_endbr_poison` in arch/x86/include/asm/ibt.h).
 */
const LANDING_PADS = [
  [0xf3, 0x0f, 0x1e, 0xfa],
  [0x66, 0x0f, 0x1f, 0x00],
  [0x0f, 0x1f, 0x40, 0xd6],
];
const LANDING_PAD_BYTES = 4;

/** Where in a function's first bytes its fentry nop is, or would be. */
export function fentryOffset(code: Uint8Array): number {
  const isLandingPad = LANDING_PADS.some((pad) => pad.every((byte, i) => code[i] === byte));
  return isLandingPad ? LANDING_PAD_BYTES : 0;
}

/** Offset of the fentry nop in a function's first bytes; undefined when it has none (any more). */
export function findFentryNop(code: Uint8Array): number | undefined {
  const offset = fentryOffset(code);
  const isNop = FENTRY_NOPS.some((nop) => nop.every((byte, i) => code[offset + i] === byte));
  return isNop ? offset : undefined;
}

/**
 * Offset of the place of ftrace in the first bytes of a function of an image: of its nop, or of the call of `__fentry__` that the kernel
 * makes one when it starts. Undefined for a function that was compiled without. `entry` and `fentry` are addresses.
 */
export function findFentry(code: Uint8Array, entry: number, fentry: number | undefined): number | undefined {
  const view = new DataView(code.buffer, code.byteOffset, code.length);
  const call = [0, LANDING_PAD_BYTES].find(
    (at) =>
      at + JUMP_BYTES <= code.length &&
      code[at] === 0xe8 &&
      entry + at + JUMP_BYTES + view.getInt32(at + 1, true) === fentry,
  );
  return findFentryNop(code) ?? call;
}

export function encodeJump(from: number, to: number): Uint8Array {
  return new ByteWriter(JUMP_BYTES)
    .writeU8(0xe9)
    .writeI32(to - (from + JUMP_BYTES))
    .toBytes();
}

/**
 * Goes to `switched` when the current task's state word is `value`, else to `other`. It changes flags and, unless told to keep
 * it, r11, which nobody expects to survive a call (psABI figure 3.4) but callers that know the callee (GCC's -fipa-ra, which files
 * compiled for ftrace do without).
 *
 *     push %r11                      (to keep it)
 *     mov  %gs:current_task, %r11
 *     cmpl $value, stateOffset(%r11)
 *     pop  %r11                      (to keep it)
 *     je   switched
 *     jmp  other
 */
export function encodeTaskTest(options: {
  readonly at: number;
  /** Address of the per-CPU variable that holds `current`, as code uses it with %gs. */
  readonly currentTask: number;
  readonly stateOffset: number;
  readonly value: number;
  readonly switched: number;
  readonly other: number;
  readonly keepsRegisters?: boolean;
}): Uint8Array {
  const { at, currentTask, stateOffset, value, switched, other, keepsRegisters = false } = options;
  const writer = new ByteWriter(TRAMPOLINE_BYTES);
  const emit = (...bytes: number[]) => writer.writeBytes(Uint8Array.from(bytes));
  if (keepsRegisters) emit(0x41, 0x53);
  writeLoadCurrent(writer, currentTask);
  emit(0x41, 0x81, 0xbb);
  writer.writeI32(stateOffset).writeI32(value);
  if (keepsRegisters) emit(0x41, 0x5b);
  emit(0x0f, 0x84);
  writer.writeI32(switched - (at + writer.length + 4));
  return writer.writeBytes(encodeJump(at + writer.length, other)).toBytes();
}

/** What {@link encodeTaskStore} makes. */
export const TASK_STORE_BYTES = 25;

/**
 * Sets the current task's state word to `value` and goes on to `next`. It changes r11.
 *
 *     mov  %gs:current_task, %r11
 *     movl $value, stateOffset(%r11)
 *     jmp  next
 */
export function encodeTaskStore(options: {
  readonly at: number;
  /** As for {@link encodeTaskTest}. */
  readonly currentTask: number;
  readonly stateOffset: number;
  readonly value: number;
  readonly next: number;
}): Uint8Array {
  const { at, currentTask, stateOffset, value, next } = options;
  const writer = new ByteWriter(TRAMPOLINE_BYTES);
  writeLoadCurrent(writer, currentTask);
  for (const byte of [0x41, 0xc7, 0x83]) writer.writeU8(byte);
  writer.writeI32(stateOffset).writeI32(value);
  return writer.writeBytes(encodeJump(at + 20, next)).toBytes();
}

/** What a task that is led away finds on its stack on its way back, in this order: the last five are `iretq`'s. */
export const WAY_BACK = [
  ...['rax', 'rcx', 'rdx', 'rbx', 'rbp', 'rsi', 'rdi', 'r8', 'r9', 'r10', 'r11', 'r12', 'r13', 'r14', 'r15'],
  ...['rip', 'cs', 'eflags', 'rsp', 'ss'],
] as const;

/**
 * Calls a function and goes back by itself to where the task was led away, all registers as they were: the stack pointer is at what
 * {@link WAY_BACK} names. `record` gets the function's result and that it has returned (`BORROWED_CALL_RECORD_BYTES`).
 *
 *     call callee
 *     mov  %eax, record+4
 *     movl $returned, record
 *     pop  %rax … pop %r15
 *     iretq
 */
export function encodeCallAndReturn(options: {
  readonly at: number;
  readonly callee: number;
  readonly record: number;
}): Uint8Array {
  const { at, callee, record } = options;
  const writer = new ByteWriter(TRAMPOLINE_BYTES);
  const emit = (...bytes: number[]) => writer.writeBytes(Uint8Array.from(bytes));
  const relative = (address: number, behindField: number) =>
    writer.writeI32(address - (at + writer.length + 4 + behindField));
  emit(0xe8);
  relative(callee, 0);
  emit(0x89, 0x05);
  relative(record + 4, 0);
  emit(0xc7, 0x05);
  relative(record, 4);
  writer.writeU32(BORROWED_CALL_RETURNED);
  emit(0x58, 0x59, 0x5a, 0x5b, 0x5d, 0x5e, 0x5f);
  for (let low = 0x58; low <= 0x5f; low++) emit(0x41, low);
  emit(0x48, 0xcf);
  return writer.toBytes();
}

/** mov %gs:current_task, %r11 */
function writeLoadCurrent(writer: ByteWriter, currentTask: number): void {
  for (const byte of [0x65, 0x4c, 0x8b, 0x1c, 0x25]) writer.writeU8(byte);
  writer.writeI32(currentTask);
}
