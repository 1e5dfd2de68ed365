# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	xor %eax, %eax
	ud2
	.cfi_endproc
	.size f, .-f
	.globl g
	.type g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size g, .-g
