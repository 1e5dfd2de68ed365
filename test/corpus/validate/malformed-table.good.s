	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	nop
	.cfi_escape 0x2e, 0x10
	ret
	.cfi_endproc
	.size f, .-f
