	.text
	.globl f
	.type f, @function
f:
	ret
f_end:
	.size f, .-f

	.section .eh_frame, "a", @unwind
cie:	.long cie_end - 1f
1:	.long 0
	.byte 1
	.asciz "zR"
	.uleb128 1
	.sleb128 -8
	.byte 16
	.uleb128 1
	.byte 0x1b
	.byte 0x0c, 7, 8, 0x80 + 16, 1
	.balign 8
cie_end:
	.long fde_end - 2f
2:	.long 2b - cie
	.long f - .
	.long f_end - f
	.uleb128 0
	.balign 8
fde_end:
