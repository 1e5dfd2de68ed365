# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	xor %eax, %eax
	jz 1f
	ret
1:	inc %eax
	ret
	.cfi_endproc
	.size f, .-f
