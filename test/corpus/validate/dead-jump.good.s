# Behind calls that never return clang writes (-O0) a jump to what would come next, the function's end: into the padding, and where there
# is none into the next function, whose frame is another.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	mov	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	call	abort
	jmp	.Lend_f
	.cfi_endproc
.Lend_f:
	.size	f, .-f
	.p2align 4, 0x90

	.globl	g
	.type	g, @function
g:
	.cfi_startproc
	push	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	mov	%rsp, %rbp
	.cfi_def_cfa_register %rbp
	test	%edi, %edi
	je	1f
	call	abort
	jmp	.Lend_g
1:
	pop	%rbp
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
	ret
	.cfi_endproc
.Lend_g:
	.size	g, .-g

	.globl	h
	.type	h, @function
h:
	.cfi_startproc
	xor	%eax, %eax
	ret
	.cfi_endproc
	.size	h, .-h
