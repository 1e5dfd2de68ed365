	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	sub $8, %rsp
	.cfi_def_cfa_offset 16
	call g
	add $8, %rsp
	.cfi_def_cfa_offset 8
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
