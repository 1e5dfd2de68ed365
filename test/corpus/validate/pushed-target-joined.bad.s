# expect: stack-not-restored
# A jump leads to the return, behind what would have made it a jump to rax: it returns to the caller's argument.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rdi
	.cfi_def_cfa_offset 16
	test	%edi, %edi
	je	1f
	mov	%rax, (%rsp)
1:
	ret
	.cfi_endproc
	.size	f, .-f
