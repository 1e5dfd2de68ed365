	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
	test %edi, %edi
	jz 1f
	call g
1:
	pop %rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
	.globl g
	.type g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size g, .-g
