# Calls through a constant in a register (-mcmodel=large): what does not return is followed by code with another frame.
	.text
	.globl absolute
	.type absolute, @function
absolute:
	.cfi_startproc
	test %edi, %edi
	js 1f
	jp 2f
	ret
1:	push %rax
	.cfi_def_cfa_offset 16
	movabs $abort, %rax
	xor %edi, %edi
	call *%rax
	.cfi_def_cfa_offset 8
2:	movabs $other, %rax
	jmp *%rax
	.cfi_endproc
	.size absolute, .-absolute

	.globl relative
	.type relative, @function
relative:
	.cfi_startproc
	test %edi, %edi
	js 1f
	jz 2f
	jp 3f
	movabs $other@GOT, %rax
	mov (%rax,%r15), %rax
	jmp *%rax
1:	push %rax
	.cfi_def_cfa_offset 16
	movabs $abort@PLTOFF, %rax
	add %r15, %rax
	call *%rax
	.cfi_def_cfa_offset 8
2:	push %rax
	.cfi_def_cfa_offset 16
	movabs $abort@GOT, %rax
	call *(%r15,%rax)
	.cfi_def_cfa_offset 8
3:	ret
	.cfi_endproc
	.size relative, .-relative
