# expect: undecodable-code
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	jmp 1f
	.byte 0x06, 0x06, 0x06
1:	ret
	.cfi_endproc
	.size f, .-f
