# die only calls abort, which never returns, and so does not return either: with its argument pushed, what lies behind
# the call is reached by the jump alone.
	.text
	.type	die, @function
die:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	abort
	.cfi_endproc
	.size	die, .-die

	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	test	%edi, %edi
	je	1f
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	die
1:
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_endproc
	.size	f, .-f
