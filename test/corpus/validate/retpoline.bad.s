# expect: stack-not-restored
# A return through a thunk, with a word left on the stack.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	test %edi, %edi
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	call __x86_indirect_thunk_rax
	jmp __x86_return_thunk
	.cfi_endproc
	.size f, .-f
