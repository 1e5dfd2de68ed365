# A branch leads behind the jump.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	mov %rdi, %rbx
	test %rsi, %rsi
	jne .Lmore
	jmp .Lend
.Lmore:
	inc %rbx
.Lend:
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_endproc
	.size f, .-f
