# expect: cfa-mismatch
	.text
	.globl f
	.type f, @function
f:
	.cfi_startproc
	enter $32, $0
	.cfi_def_cfa %rsp, 40
	.cfi_offset %rbp, -16
	call g
	leave
	.cfi_def_cfa %rsp, 8
	.cfi_restore %rbp
	ret
	.cfi_endproc
	.size f, .-f
	.globl g
	.type g, @function
g:
	.cfi_startproc
	ret
	.cfi_endproc
	.size g, .-g
