# expect: cfa-mismatch
# Where a jump label leads, the row is another one.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
.Lsite:
	.byte 0x0f, 0x1f, 0x44, 0x00, 0x00
.Lback:
	pop %rbx
	.cfi_remember_state
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_restore_state
	.cfi_def_cfa_offset 24
.Lyes:
	mov $1, %ebx
	.cfi_def_cfa_offset 16
	jmp .Lback
	.cfi_endproc
	.size f, .-f
	.section __jump_table, "aw"
	.long .Lsite - .
	.long .Lyes - .
	.quad 0
