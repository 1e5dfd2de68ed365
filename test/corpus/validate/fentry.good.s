# options: frame-pointer
# The tracer's call comes before the frame, and leaves all registers alone.
	.text
	.globl f
	.type f, @function
f:
	call __fentry__
	push %rbp
	mov %rsp, %rbp
	call g
	pop %rbp
	ret
	.size f, .-f
