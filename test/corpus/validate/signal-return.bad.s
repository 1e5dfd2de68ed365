# expect: row-assumed
# As in the C library: the entry begins a byte before the code, in padding.
	.text
	.globl before
	.type before, @function
before:
	.cfi_startproc
	ret
	.cfi_endproc
	.size before, .-before

	.p2align 4
	.globl restore
	.type restore, @function
restore:
	mov $15, %rax
	syscall
restore_end:
	.size restore, .-restore

	.p2align 4
	.globl after
	.type after, @function
after:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	pop %rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size after, .-after

	.section .eh_frame, "a", @progbits
cie:
	.long cie_end - . - 4
	.long 0
	.byte 1
	.asciz "zRS"
	.uleb128 1
	.sleb128 -8
	.byte 16
	.uleb128 1
	.byte 0x1b
	.p2align 3
cie_end:
	.long fde_end - . - 4
	.long . - cie
	.long restore - 1 - .
	.long restore_end - restore + 1
	.uleb128 0
	# The CFA is the stack pointer that was interrupted, which lies at rsp+160, its address at rsp+168.
	.byte 0x0f, 4, 0x77, 0xa0, 1, 0x06
	.byte 0x10, 16, 3, 0x77, 0xa8, 1
	.p2align 3
fde_end:
