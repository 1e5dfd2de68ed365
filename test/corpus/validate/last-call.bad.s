# expect: cfa-mismatch
# Without padding behind it, what follows a system call may be more of the same.
	.text
	.globl wait
	.type wait, @function
wait:
	.cfi_startproc
	push %rbx
	.cfi_def_cfa_offset 16
	.cfi_offset %rbx, -16
	mov $34, %eax
	syscall
	.cfi_endproc
	.size wait, .-wait

	.globl woken
	.type woken, @function
woken:
	.cfi_startproc
	ret
	.cfi_endproc
	.size woken, .-woken
