# expect: stack-not-restored
# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
	ret
	.cfi_endproc
	.size f, .-f
