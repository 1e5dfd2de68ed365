# options: debug-frame
# Go's functions keep no register for their callers, gopanic does not come back, a nop parts it from what follows, and the last row begins inside
# the last instruction, and says nothing new.
	.text
	.type main.f, @function
main.f:
	cmp 16(%r14), %rsp
	jbe grow
	sub $24, %rsp
body:
	mov %rbp, 16(%rsp)
	lea 16(%rsp), %rbp
	xor %ebx, %ebx
	xor %r12d, %r12d
	test %rax, %rax
	je 1f
	mov 16(%rsp), %rbp
	add $24, %rsp
leave:
	ret
left:
1:	call runtime.gopanic
	nop
grow:
	call runtime.morestack_noctxt
	jmp main.f
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
	.byte 0x13
	.sleb128 -2
	.byte 0x40 + (body - main.f)
	.byte 0x13
	.sleb128 -8
	.byte 0x40 + (leave - body)
	.byte 0x13
	.sleb128 -2
	.byte 0x40 + (left - leave)
	.byte 0x13
	.sleb128 -8
	.byte 0x40 + (grow - left)
	.byte 0x13
	.sleb128 -2
	.byte 0x40 + (end - grow - 1)
	.p2align 3
fde_end:
