# A function that says of itself that its stack is not a standard one (STACK_FRAME_NON_STANDARD).
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	pop %rax
	ret
	.cfi_endproc
	.size f, .-f
	.section .discard.func_stack_frame_non_standard, "aw"
	.quad f
