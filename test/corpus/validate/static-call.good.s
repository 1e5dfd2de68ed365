# Static calls: through a trampoline, and as the last thing that a function does.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call __SCT__first
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	jmp __SCT__last
	.cfi_endproc
	.size f, .-f
