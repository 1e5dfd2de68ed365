/** DWARF register numbers of x86-64 (psABI figure 3.36). */
export const DW_RAX = 0;
export const DW_RBP = 6;
export const DW_RSP = 7;
export const DW_RA = 16;

/** DWARF number of the register with hardware encoding 0–15 (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 …). */
export const DWARF_OF_HARDWARE: readonly number[] = [0, 2, 1, 3, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15];

/** rbx, rbp, r12–r15 (psABI section 3.2.1). */
export const CALLEE_SAVED: readonly number[] = [3, 6, 12, 13, 14, 15];
