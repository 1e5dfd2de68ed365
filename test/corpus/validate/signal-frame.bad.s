# expect: cfa-unproven
# The same expression without saying that it is a signal's frame, in a function that is called.
	.text
	.globl restore
	.type restore, @function
restore:
	.cfi_startproc
	nop
	.cfi_escape 0x0f, 4, 0x77, 0xa0, 1, 0x06
	.cfi_escape 0x10, 16, 3, 0x77, 0xa8, 1
	nop
	mov $15, %eax
	syscall
	hlt
	.cfi_endproc
	.size restore, .-restore
