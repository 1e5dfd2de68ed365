	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	mov %rbx, %rdx
	.cfi_register %rbx, %rdx
	xor %ebx, %ebx
	mov %rdx, %rbx
	.cfi_restore %rbx
	ret
	.cfi_endproc
	.size f, .-f
