# expect: row-inside-instruction
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	.byte 0x48, 0x83
	.cfi_def_cfa_offset 16
	.byte 0xec, 0x08
	add $8, %rsp
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
