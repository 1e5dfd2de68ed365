# expect: saved-register-mismatch
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %r12
	.cfi_def_cfa_offset 16
	.cfi_offset %r12, -16
	push %rbx
	.cfi_def_cfa_offset 24
	.cfi_offset %rbx, -16
	xor %ebx, %ebx
	pop %rbx
	.cfi_def_cfa_offset 16
	.cfi_restore %rbx
	pop %r12
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
