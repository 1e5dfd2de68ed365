# Sibling calls through slots (-fno-plt): one in a frame that is taken away, one to what never returns, in a frame that is not.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	sub $8, %rsp
	.cfi_def_cfa_offset 16
	call h
	add $8, %rsp
	.cfi_def_cfa_offset 8
	jmp *g@GOTPCREL(%rip)
	.cfi_endproc
	.size f, .-f

	.globl leaves
	.type leaves, @function
leaves:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
	jmp *exit@GOTPCREL(%rip)
	.cfi_endproc
	.size leaves, .-leaves
