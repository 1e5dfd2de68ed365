# The same as a sibling call: the frame is gone.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	mov %rdi, %rbx
	mov 8(%rbx), %rax
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	jmp *%rax
	.cfi_endproc
	.size f, .-f
