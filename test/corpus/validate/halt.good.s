# options: frame-pointer
# A kernel's halt waits for an interrupt, and goes on.
	.section .modinfo, "a"
	.asciz "name=halt"
	.text
	.globl f
	.type f, @function
f:
	sti
	hlt
	ret
	.size f, .-f
