import { SYS_rt_sigreturn } from './syscalls.js';

/** Indexes into `user_regs_struct` (arch/x86/include/asm/user_64.h). */
export const R15 = 0;
export const R14 = 1;
export const R13 = 2;
export const R12 = 3;
export const RBP = 4;
export const RBX = 5;
export const R11 = 6;
export const R10 = 7;
export const R9 = 8;
export const R8 = 9;
export const RAX = 10;
export const RCX = 11;
export const RDX = 12;
export const RSI = 13;
export const RDI = 14;
export const ORIG_RAX = 15;
export const RIP = 16;
export const CS = 17;
export const EFLAGS = 18;
export const RSP = 19;
export const SS = 20;
export const FS_BASE = 21;
export const GS_BASE = 22;

/** `user_regs_struct` index of each DWARF register 0–16 (x86-64 psABI figure 3.36; 16 is the return address). */
const BY_DWARF = [RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15, RIP] as const;

export const RED_ZONE_BYTES = 128;
const RETURN_ADDRESS = 16;
const SYSCALL_BYTES = 2;

/** A register as the signed number of `src/base/brand.ts`; inexact for values that are no canonical address. */
export function readRegister(registers: Buffer, index: number): number {
  return registers.readInt32LE(index * 8 + 4) * 0x1_0000_0000 + registers.readUInt32LE(index * 8);
}

export function writeRegister(registers: Buffer, index: number, value: number | bigint): void {
  registers.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)), index * 8);
}

/**
 * The registers in DWARF order, as the walk takes them. At the entry of `rt_sigreturn` a thread stands behind the last instruction of
 * a function that nothing follows, and that no table covers any more: it counts as in front of its `syscall`, which has
 * changed nothing that a table speaks of. (At its exit the kernel has taken the number away: restore_sigcontext.)
 */
export function toDwarfRegisters(registers: Buffer, into: Float64Array): Float64Array {
  for (let i = 0; i < BY_DWARF.length; i++) into[i] = readRegister(registers, BY_DWARF[i] as number);
  if (readRegister(registers, ORIG_RAX) === SYS_rt_sigreturn)
    (into[RETURN_ADDRESS] as number) -= SYSCALL_BYTES;
  return into;
}
