# expect: row-assumed
# Behind the last call of f, which never returns, is code under a row that nothing shows. What that goes on into is not known: the row of g is right.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	abort
	.cfi_def_cfa_offset 48
	mov	%rsp, %rcx
	.cfi_endproc
	.size	f, .-f

	.globl	g
	.type	g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size	g, .-g

	.globl	h
	.type	h, @function
h:
	.cfi_startproc
	push	%rax
	.cfi_def_cfa_offset 16
	call	g
	pop	%rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size	h, .-h
