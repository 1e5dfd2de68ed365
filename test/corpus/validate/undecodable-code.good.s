	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	jmp 1f
	.byte 0x90, 0x90, 0x90
1:	ret
	.cfi_endproc
	.size f, .-f
