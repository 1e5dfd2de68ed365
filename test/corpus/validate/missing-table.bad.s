# expect: missing-table
# options: dwarf orc
# ORC is asked for, and the object has none.
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	ret
	.cfi_endproc
	.size f, .-f
