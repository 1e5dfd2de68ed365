# A register that is saved already is pushed again, for its room or as an argument: what was saved stays where it is.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset rbx, -16
	push %rbx
	.cfi_def_cfa_offset 24
	mov %edi, %ebx
	push %rbx
	.cfi_def_cfa_offset 32
	add $16, %rsp
	.cfi_def_cfa_offset 16
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore rbx
	ret
	.cfi_endproc
	.size f, .-f
