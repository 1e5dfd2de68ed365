# expect: call-without-frame-pointer
# options: frame-pointer
# Any other call before the frame is none of the tracer.
	.text
	.globl f
	.type f, @function
f:
	call __fexit__
	push %rbp
	mov %rsp, %rbp
	call g
	pop %rbp
	ret
	.size f, .-f
