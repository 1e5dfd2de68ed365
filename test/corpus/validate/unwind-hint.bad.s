# expect: row-assumed
# At an unwind hint the claim is taken as given; without one this would be a cfa-unproven.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	mov (%rdi), %rsp
1:	.cfi_def_cfa rsp, 16
	pop %rax
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.size f, .-f
	.section .discard.unwind_hints, "a"
	.long 1b - .
	.short 16
	.byte 5, 0, 0, 0
