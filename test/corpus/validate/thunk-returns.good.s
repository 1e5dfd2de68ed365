# r returns, through a thunk of its own (-mfunction-return=thunk-inline), and f goes on behind the call of it.
	.text
	.globl	r
	.type	r, @function
r:
	.cfi_startproc
	call	2f
1:
	pause
	lfence
	jmp	1b
2:
	.cfi_def_cfa_offset 16
	lea	8(%rsp), %rsp
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size	r, .-r

	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	test	%edi, %edi
	je	1f
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	r
	pop	%rbx
1:
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_endproc
	.size	f, .-f
