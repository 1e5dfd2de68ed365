# expect: stack-not-restored
# A jump to another function from the middle of a frame.
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
	jmp h
	.cfi_endproc
	.size f, .-f
