# expect: missing-row
	.text
	.globl f
	.type f, @function
f:
	call g
	ret
	.size f, .-f
	.globl g
	.type g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size g, .-g
