	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	xor %ebx, %ebx
	pop %rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
