# Reports of sanitizers that end the program (GCC -Os -fsanitize=address, -fno-sanitize-recover) are called with the stack aligned for them, and
# what lies behind is reached without.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	cmp	%cl, %dl
	jl	1f
	push	%rax
	.cfi_def_cfa_offset 16
	call	__asan_report_load4
1:
	.cfi_def_cfa_offset 8
	jno	2f
	push	%rax
	.cfi_def_cfa_offset 16
	call	__ubsan_handle_add_overflow_abort
2:
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size	f, .-f
