# expect: jump-not-followed row-assumed
# A computed goto through an inline thunk (-mindirect-branch=thunk-inline) stays in the frame: a jump to where nothing shows, not a return that
# leaves words on the stack.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	push	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	sub	$16, %rsp
	.cfi_def_cfa_offset 32
	call	2f
1:
	pause
	lfence
	jmp	1b
2:
	.cfi_def_cfa_offset 40
	mov	%rax, (%rsp)
	ret
	.cfi_def_cfa_offset 32
	mov	$1, %eax
	add	$16, %rsp
	.cfi_def_cfa_offset 16
	pop	%rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_endproc
	.size	f, .-f
