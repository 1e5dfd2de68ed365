# A CFA by an expression, as in the entries of procedure linkage tables: rsp+8, and 8 more from the fifth byte on.
	.text
	.balign 16
	.globl f
	.type f, @function
f:
	.cfi_startproc
	# DW_CFA_def_cfa_expression: DW_OP_breg7 8, DW_OP_breg16 0, DW_OP_lit15, DW_OP_and, DW_OP_lit5, DW_OP_ge, DW_OP_lit3, DW_OP_shl, DW_OP_plus
	.cfi_escape 0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x35, 0x2a, 0x33, 0x24, 0x22
	nopl (%rax)
	push $1
	pop %rax
	.cfi_def_cfa rsp, 8
	ret
	.cfi_endproc
	.size f, .-f
