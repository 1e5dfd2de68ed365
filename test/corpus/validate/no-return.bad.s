# expect: cfa-mismatch
# die returns where its argument is 0: behind the call the pushed word is still on the stack, and the row counts it as gone.
	.text
	.type	die, @function
die:
	.cfi_startproc
	test	%edi, %edi
	je	1f
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	abort
1:
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
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
