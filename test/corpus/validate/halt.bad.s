# expect: unreachable-code
# options: frame-pointer
# A program's halt is a fault: what follows is never reached.
	.text
	.globl f
	.type f, @function
f:
	sti
	hlt
	ret
	.size f, .-f
