# expect: cfa-mismatch
# options: orc
	.text
	.globl f
	.type f, @function
f:
	push %rbp
f1:	xor %ebp, %ebp
	pop %rbp
f2:	ret
f_end:
	.size f, .-f

	.section .orc_unwind_ip, "a"
	.long f - .
	.long f1 - .
	.long f2 - .
	.long f_end - .
	.section .orc_unwind, "a"
	.short 8, 0, 5
	.short 24, -16, 0x15
	.short 8, 0, 5
	.short 0, 0, 0
