# expect: cfa-mismatch
# Behind data that a function begins with, the code is held against its rows: the one behind the push is missing.
	.text
	.globl	f
	.type	f, @function
f:
	.cfi_startproc
	jmp	1f
	.ascii	"v2"
	.byte	0x00, 0x00, 0x00, 0x00
1:
	push	%rax
	call	g
	pop	%rax
	.cfi_def_cfa_offset 8
	ret
	.fill	48, 1, 0x90
	.cfi_endproc
	.size	f, .-f

	.globl	h
	.type	h, @function
h:
	.cfi_startproc
	jmp	1f
	.ascii	"v2"
	.byte	0x00, 0x00, 0x48, 0xb8
1:
	push	%rax
	.cfi_def_cfa_offset 16
	call	g
	pop	%rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size	h, .-h
