# expect: unreachable-code
# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	xor %eax, %eax
	ret
	inc %eax
	ret
	.cfi_endproc
	.size f, .-f
