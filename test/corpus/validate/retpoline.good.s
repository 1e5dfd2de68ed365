# Returns and indirect jumps through thunks (CONFIG_RETPOLINE, CONFIG_RETHUNK).
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	test %edi, %edi
	je .Lend
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call __x86_indirect_thunk_rax
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
.Lend:
	jmp __x86_return_thunk
	.cfi_endproc
	.size f, .-f
