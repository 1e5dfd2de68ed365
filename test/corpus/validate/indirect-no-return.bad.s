# expect: cfa-mismatch
# Behind an indirect call that is followed by more of its function, that goes on, and the row there is wrong.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	*%rax
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	pop	%rbx
	ret
	.cfi_endproc
	.size	f, .-f
