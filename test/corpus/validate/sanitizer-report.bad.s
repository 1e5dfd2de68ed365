# expect: cfa-mismatch
# A report that lets the program go on: behind the call the word is still on the stack.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	jno	1f
	push	%rax
	.cfi_def_cfa_offset 16
	call	__ubsan_handle_add_overflow
1:
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size	f, .-f
