# expect: cfa-mismatch
# The state behind the early way out is not given back.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset rbx, -16
	test %edi, %edi
	jz 1f
	.cfi_remember_state
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore rbx
	ret
1:
	xor %ebx, %ebx
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore rbx
	ret
	.cfi_endproc
	.size f, .-f
