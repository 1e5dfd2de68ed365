# expect: stack-not-restored
# A static call as the last thing, with a word left on the stack.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call __SCT__first
	jmp __SCT__last
	.cfi_endproc
	.size f, .-f
