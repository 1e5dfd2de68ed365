# expect: malformed-table missing-row
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	nop
	.cfi_escape 0x3f
	ret
	.cfi_endproc
	.size f, .-f
