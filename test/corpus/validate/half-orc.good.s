# Both sections are there and hold nothing, as in a file that was split: the file has no table.
	.text
	.globl f
	.type f, @function
f:
	ret
	.size f, .-f

	.section .orc_unwind, "a"
	.section .orc_unwind_ip, "a"
