# expect: cfa-mismatch
# options: debug-frame
# As in go.good.s, but the row of the frame begins an instruction late.
	.text
	.type main.f, @function
main.f:
	sub $24, %rsp
	xor %ebx, %ebx
body:
	call main.g
	add $24, %rsp
leave:
	ret
end:
	.size main.f, .-main.f

	.section .go.buildinfo, "a"
	.asciz "\377 Go buildinf:"

	.section .debug_frame, "", @progbits
cie:
	.long cie_end - . - 4
	.long 0xffffffff
	.byte 3
	.asciz ""
	.uleb128 1
	.sleb128 -4
	.uleb128 16
	.byte 0x0c, 7, 8
	.byte 0x05, 16, 2
	.p2align 3
cie_end:
	.long fde_end - . - 4
	.long cie
	.quad main.f
	.quad end - main.f
	.byte 0x40 + (body - main.f)
	.byte 0x13
	.sleb128 -8
	.byte 0x40 + (leave - body)
	.byte 0x13
	.sleb128 -2
	.p2align 3
fde_end:
