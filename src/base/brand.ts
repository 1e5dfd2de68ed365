/** Nominal types over plain numbers: a {@link LinkAddress} can't be passed where a {@link TargetAddress} is meant. */

declare const brand: unique symbol;

export type Brand<T, Name extends string> = T & { readonly [brand]: Name };

/**
 * An address as an ELF file states it (`st_value`, `sh_addr`, `p_vaddr`), before any load bias.
 *
 * Held as a JavaScript number: the *signed* reading of the 64-bit value. User addresses are positive and kernel
 * addresses negative; both are exact, since a canonical x86-64 address has at most 48 significant bits. Where a kernel
 * uses 57, its text still lies in the top 2 GiB, and other addresses are exact when they are multiples of 8.
 * {@link foldAddress} and {@link unfoldAddress} convert at the edges.
 */
export type LinkAddress = Brand<number, 'LinkAddress'>;

/** An address in the target's own address space. Same representation as {@link LinkAddress}. */
export type TargetAddress = Brand<number, 'TargetAddress'>;

/** A byte position in a file. */
export type FileOffset = Brand<number, 'FileOffset'>;

export const linkAddress = (value: number): LinkAddress => value as LinkAddress;
export const targetAddress = (value: number): TargetAddress => value as TargetAddress;
export const fileOffset = (value: number): FileOffset => value as FileOffset;

/** Unsigned 64-bit to the signed number that the address types hold. Not exact beyond 53 bits of magnitude. */
export function foldAddress(value: bigint): number {
  return Number(BigInt.asIntN(64, value));
}

/** The unsigned 64-bit value of an address, for the wire, for registers and for people. */
function unfoldAddress(value: number): bigint {
  return BigInt.asUintN(64, BigInt(value));
}

/** Whether a number can be an address without having lost bits: see {@link LinkAddress}. */
export function isExactAddress(value: number): boolean {
  return Number.isSafeInteger(value) || (Math.abs(value) <= 2 ** 56 && value % 8 === 0);
}

/** `0x…`, unsigned, as every other tool prints addresses. */
export function hex(value: number | bigint): string {
  return `0x${(typeof value === 'bigint' ? BigInt.asUintN(64, value) : unfoldAddress(value)).toString(16)}`;
}
