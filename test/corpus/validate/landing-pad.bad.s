# expect: cfa-mismatch
# An exception leaves a call with two arguments on the stack, and nothing says that the unwinder takes them away.
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
.Lbegin:
	call g
.Lend:
	add $16, %rsp
	.cfi_adjust_cfa_offset -16
.Lout:
	pop %rbx
	.cfi_remember_state
	.cfi_def_cfa_offset 8
	.cfi_restore %rbx
	ret
	.cfi_restore_state
.Lpad:
	jmp .Lout
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
	.uleb128 .Lpad - f
	.uleb128 0
.Ltable_end:
	.data
	.align 8
personality:
	.quad 0
