# Returns to what was just written are jumps there: thunks of indirect branches under names of their own, one that is part of a function, and
# push and ret.
	.text
	.globl	take_rax
	.type	take_rax, @function
take_rax:
	.cfi_startproc
	call	2f
1:
	pause
	lfence
	jmp	1b
2:
	.cfi_def_cfa_offset 16
	mov	%rax, (%rsp)
	ret
	.cfi_endproc
	.size	take_rax, .-take_rax

	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	mov	%rdi, %rax
	mov	%rsi, %rbx
	call	take_rax
	mov	%rbx, %rax
	pop	%rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	jmp	take_rax
	.cfi_endproc
	.size	f, .-f

	.globl	g
	.type	g, @function
g:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call	f
	pop	%rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	call	2f
1:
	int3
	jmp	1b
2:
	.cfi_def_cfa_offset 16
	mov	%r11, (%rsp)
	ret
	.cfi_endproc
	.size	g, .-g

	.globl	h
	.type	h, @function
h:
	.cfi_startproc
	push	%rdi
	.cfi_def_cfa_offset 16
	ret
	.cfi_endproc
	.size	h, .-h
