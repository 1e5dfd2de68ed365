# expect: register-clobbered
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	xor %ebx, %ebx
	ret
	.cfi_endproc
	.size f, .-f
