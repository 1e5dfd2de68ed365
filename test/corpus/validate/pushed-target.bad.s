# expect: jump-not-followed register-not-restored
# f jumps to rax in the middle of its frame; h jumps with rbx overwritten.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rdi
	.cfi_def_cfa_offset 16
	call	2f
1:
	pause
	jmp	1b
2:
	.cfi_def_cfa_offset 24
	mov	%rax, (%rsp)
	ret
	.cfi_endproc
	.size	f, .-f

	.globl	h
	.type	h, @function
h:
	.cfi_startproc
	.cfi_undefined %rbx
	mov	%rdi, %rbx
	push	%rax
	.cfi_def_cfa_offset 16
	ret
	.cfi_endproc
	.size	h, .-h
