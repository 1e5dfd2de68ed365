# expect: jump-table-unbounded
# Nothing says how many entries the table has.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	lea .Ltable(%rip), %rdx
	movslq (%rdx,%rdi,4), %rax
	add %rdx, %rax
	notrack jmp *%rax
.Lone:
	mov $1, %ebx
	jmp .Lend
.Ltwo:
	mov $2, %ebx
.Lend:
	pop %rbx
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_endproc
	.size f, .-f
	.section .rodata
	.align 4
.Ltable:
	.long .Lone - .Ltable
	.long .Ltwo - .Ltable
