# expect: row-assumed
# Such a frame is not derived: it is taken as given, and said to be.
# What a signal handler returns to: behind no call, with the registers of whom the signal has stopped on the stack.
	.text
	.globl restore
	.type restore, @function
restore:
	.cfi_startproc
	.cfi_signal_frame
	# Where the kernel has put rsp, rip and rbx (struct ucontext from rsp on): DW_OP_breg7 160, DW_OP_deref.
	.cfi_escape 0x0f, 4, 0x77, 0xa0, 1, 0x06
	.cfi_escape 0x10, 16, 3, 0x77, 0xa8, 1
	.cfi_escape 0x10, 3, 3, 0x77, 0x80, 1
	nop
	mov $15, %eax
	syscall
	hlt
	.cfi_endproc
	.size restore, .-restore
