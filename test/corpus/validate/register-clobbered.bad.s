# expect: register-clobbered register-not-restored
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	xor %ebx, %ebx
	ret
	.cfi_endproc
	.size f, .-f
