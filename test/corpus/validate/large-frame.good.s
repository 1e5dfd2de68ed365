# A frame of nearly eight megabytes.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	sub $0x7ff000, %rsp
	.cfi_def_cfa_offset 0x7ff010
	mov %rsp, %rdi
	call use
	add $0x7ff000, %rsp
	.cfi_def_cfa_offset 16
	pop %rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
