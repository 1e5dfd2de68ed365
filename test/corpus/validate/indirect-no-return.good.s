# f calls abort through a register (-mcmodel=large), and ends there: nothing of it goes on into g.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	movabs	$abort, %rax
	call	*%rax
	.cfi_endproc
	.size	f, .-f
	.p2align 4, 0x90

	.globl	g
	.type	g, @function
g:
	.cfi_startproc
	push	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	call	f
	.cfi_endproc
	.size	g, .-g

	.globl	h
	.type	h, @function
h:
	.cfi_startproc
	ret
	.cfi_endproc
	.size	h, .-h
