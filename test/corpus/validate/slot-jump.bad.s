# expect: stack-not-restored
# A sibling call through the slot of what it leads to (-fno-plt), with the frame still there.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	sub $8, %rsp
	.cfi_def_cfa_offset 16
	jmp *g@GOTPCREL(%rip)
	.cfi_endproc
	.size f, .-f
