# expect: cfa-mismatch
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	call g
	pop %rax
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
