# expect: cfa-mismatch
# The same function, and nothing says that its stack is not a standard one.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	pop %rax
	ret
	.cfi_endproc
	.size f, .-f
