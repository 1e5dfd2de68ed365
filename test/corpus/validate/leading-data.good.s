# Functions that begin with a jump over data (clang -fsanitize=function): once it seems to be a branch into what follows, once the begin
# of an instruction that ends behind the first of the code.
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
	.cfi_def_cfa_offset 16
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
