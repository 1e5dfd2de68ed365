# expect: call-to-unmarked-code
# options: frame-pointer
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbp
	.cfi_def_cfa_offset 16
	.cfi_offset %rbp, -16
	mov %rsp, %rbp
	.cfi_def_cfa_register %rbp
	call g
	pop %rbp
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
	ret
	.cfi_endproc
	.size f, .-f
	.balign 64
g:	ret
