# A jump to another function leaves this one: with everything given back.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset rbx, -16
	mov %edi, %ebx
	call g
	mov %ebx, %edi
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore rbx
	jmp h
	.cfi_endproc
	.size f, .-f
