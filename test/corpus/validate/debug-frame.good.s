# Claims in .debug_frame.
	.cfi_sections .debug_frame
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
	pop %rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
