# expect: cfa-mismatch
# Behind the call, which never returns, the compiler wrote on: what it wrote there is held against its rows up to the jump, and the first is wrong.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	abort
	push	%rax
	nop
	jmp	.Lend
	.cfi_endproc
.Lend:
	.size	f, .-f

	.globl	g
	.type	g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size	g, .-g
