# expect: cfa-unproven row-assumed
# Without the hint: nothing shows the frame.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	mov (%rdi), %rsp
1:	.cfi_def_cfa rsp, 16
	pop %rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
