# expect: cfa-mismatch
# What replaces five bytes at boot leaves a word more on the stack.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	push %rax
	.cfi_def_cfa_offset 16
.Lsite:
	.byte 0x0f, 0x1f, 0x44, 0x00, 0x00
.Lend:
	pop %rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
	.section .altinstr_replacement, "ax"
.Lnew:
	push %rax
	.byte 0x0f, 0x1f, 0x40, 0x00
.Lnew_end:
	.section .altinstructions, "a"
	.long .Lsite - .
	.long .Lnew - .
	.short 1
	.byte .Lend - .Lsite
	.byte .Lnew_end - .Lnew
