# options: dwarf debug-frame
# One of the two sections that hold DWARF is there.
	.cfi_sections .debug_frame
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	ret
	.cfi_endproc
	.size f, .-f
