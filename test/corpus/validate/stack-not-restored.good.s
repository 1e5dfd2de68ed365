# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
	pop %rax
	.cfi_def_cfa_offset 8
	jmp g
	.cfi_endproc
	.size f, .-f
	.globl g
	.type g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size g, .-g
