# expect: jump-not-followed
# A jump through memory in the middle of a frame.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	mov %rdi, %rbx
	jmp *8(%rbx)
	.cfi_endproc
	.size f, .-f
