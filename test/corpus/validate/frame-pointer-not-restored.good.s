# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	mov %rsp, %rbp
	.cfi_def_cfa_register %rbp
	leave
	.cfi_def_cfa %rsp, 8
	ret
	.cfi_endproc
	.size f, .-f
