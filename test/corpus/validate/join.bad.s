# expect: cfa-mismatch
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	test %edi, %edi
	jz 1f
	push %rax
	.cfi_def_cfa_offset 16
1:
	call g
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
