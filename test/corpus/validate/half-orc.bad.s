# expect: malformed-table
# Entries, and no addresses that they are for.
	.text
	.globl f
	.type f, @function
f:
	ret
	.size f, .-f

	.section .orc_unwind, "a"
	.short 8, 0, 5
	.short 0, 0, 0
