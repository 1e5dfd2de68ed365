# expect: stack-not-restored cfa-mismatch
# A sibling call through a constant in a register with the frame still there; and a call that may return, since the constant is one of two.
	.text
	.globl keeps
	.type keeps, @function
keeps:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
	movabs $other, %rax
	jmp *%rax
	.cfi_endproc
	.size keeps, .-keeps

	.globl chooses
	.type chooses, @function
chooses:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	movabs $other, %rax
	test %edi, %edi
	jz 1f
	movabs $abort, %rax
1:	call *%rax
	.cfi_def_cfa_offset 8
	pop %rbx
	ret
	.cfi_endproc
	.size chooses, .-chooses
