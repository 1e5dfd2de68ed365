# An exception that leaves the call is to be caught in the middle of an instruction.
# expect: malformed-table
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	.cfi_personality 0x9b, personality
	.cfi_lsda 0x1b, .Llsda
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	push %rax
	.cfi_adjust_cfa_offset 8
	push %rax
	.cfi_adjust_cfa_offset 8
	.cfi_escape 0x2e, 16
.Lbegin:
	call g
.Lend:
	add $16, %rsp
	.cfi_adjust_cfa_offset -16
.Lout:
	.cfi_escape 0x2e, 0
	pop %rbx
	.cfi_remember_state
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_restore_state
	.cfi_endproc
	.size f, .-f
	.globl g
	.type g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size g, .-g
	.section .gcc_except_table, "a"
.Llsda:
	.byte 0xff
	.byte 0xff
	.byte 0x01
	.uleb128 .Ltable_end - .Ltable
.Ltable:
	.uleb128 .Lbegin - f
	.uleb128 .Lend - .Lbegin
	.uleb128 .Lend + 1 - f
	.uleb128 0
.Ltable_end:
	.data
	.align 8
personality:
	.quad 0
