# expect: malformed-table
# Addresses, and no entries for them.
	.text
	.globl f
	.type f, @function
f:
	ret
f_end:
	.size f, .-f

	.section .orc_unwind_ip, "a"
	.long f - .
	.long f_end - .
