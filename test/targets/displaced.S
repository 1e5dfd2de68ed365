# Small functions, one for each thing that can stand in a function's first bytes. Each takes two numbers in rdi and rsi
# and returns one in rax; `counter` and `flag` are memory that they change.
    .macro function name, alignment=16
    .text
    .balign \alignment
    .globl \name
    .type \name, @function
\name:
    .endm
    .macro end name
    .size \name, . - \name
    .endm

    .data
    .globl counter, flag, data
counter: .quad 0
flag: .quad 0
data: .long 1234567, 2, 3, 4
    .float 2.5
pointer: .quad helper
    .section .note.GNU-stack,"",@progbits

function helper
    lea 3(%rdi,%rdi,4), %rax
    ret
end helper

function plain
    mov %edi, %eax
    add %esi, %eax
    imul $7, %eax, %eax
    ret
end plain

function with_endbr
    endbr64
    lea (%rdi,%rsi,2), %rax
    xor $0x55, %eax
    ret
end with_endbr

function frame
    push %rbp
    mov %rsp, %rbp
    sub $32, %rsp
    mov %rdi, -8(%rbp)
    mov %rsi, -16(%rbp)
    mov -8(%rbp), %rax
    add -16(%rbp), %rax
    leave
    ret
end frame

function rip_load
    mov data(%rip), %eax
    add %edi, %eax
    ret
end rip_load

function rip_store
    add %rdi, counter(%rip)
    mov counter(%rip), %rax
    ret
end rip_store

function rip_byte_immediate
    cmpl $2, data+4(%rip)
    sete %al
    movzbl %al, %eax
    add %edi, %eax
    ret
end rip_byte_immediate

function rip_long_immediate
    movq $0x12345678, flag(%rip)
    mov flag(%rip), %rax
    add %rdi, %rax
    ret
end rip_long_immediate

function rip_address
    lea data(%rip), %rdx
    mov 8(%rdx), %eax
    add %edi, %eax
    ret
end rip_address

function rip_vector
    cvtsi2ss %edi, %xmm0
    mulss data+16(%rip), %xmm0
    cvttss2si %xmm0, %eax
    ret
end rip_vector

function rip_vector_first
    movss data+16(%rip), %xmm1
    cvttss2si %xmm1, %eax
    add %edi, %eax
    ret
end rip_vector_first

function call_first
    call helper
    add %esi, %eax
    ret
end call_first

function call_indirect_memory
    call *pointer(%rip)
    sub %esi, %eax
    ret
end call_indirect_memory

function call_behind_push
    push %rbx
    mov %esi, %ebx
    call helper
    add %ebx, %eax
    pop %rbx
    ret
end call_behind_push

# The call returns into the five bytes, but not into the two of a hop.
function call_returns_inside
    push %rbx
    lea helper(%rip), %rax
    call *%rax
    pop %rbx
    ret
end call_returns_inside

# A branch that leads to where it would go anyway.
function branch_to_next
    xchg %rax, %rsi
    jrcxz 1f
1:  ret
end branch_to_next

function indirect_call_inside
    mov %esi, %ecx
    call *%r11
    ret
end indirect_call_inside

function jump_tail
    jmp helper
end jump_tail

function jump_indirect
    jmp *pointer(%rip)
end jump_indirect

function jump_short
    inc %edi
    jmp 1f
    .skip 12, 0x90
1:  lea (%rdi,%rsi), %rax
    ret
end jump_short

function branch_short
    test %edi, %edi
    je 1f
    mov %esi, %eax
    ret
1:  mov $99, %eax
    ret
end branch_short

function branch_parity
    cmp %edi, %esi
    jp 1f
    mov $1, %eax
    ret
1:  mov $2, %eax
    ret
end branch_parity

function branch_near
    cmp %esi, %edi
    jg 1f
    mov $5, %eax
    ret
    .skip 200, 0x90
1:  mov %edi, %eax
    ret
end branch_near

function branch_to_other
    test %dil, %dil
    js helper
    lea 1(%rdi), %rax
    ret
end branch_to_other

function loop_forward
    mov %esi, %ecx
    loop 1f
    mov $11, %eax
    ret
1:  lea 7(%rcx), %rax
    ret
end loop_forward

function loope_forward
    mov %esi, %ecx
    test %edi, %edi
    loope 1f
    mov $12, %eax
    ret
1:  lea 8(%rcx), %rax
    ret
end loope_forward

function loopne_forward
    mov %esi, %ecx
    test %edi, %edi
    loopne 1f
    mov $13, %eax
    ret
1:  lea 9(%rcx), %rax
    ret
end loopne_forward

function jrcxz_forward
    mov %rsi, %rcx
    jrcxz 1f
    mov $14, %eax
    ret
1:  lea 10(%rdi), %rax
    ret
end jrcxz_forward

function jecxz_forward
    mov %esi, %ecx
    jecxz 1f
    mov $15, %eax
    ret
1:  lea 11(%rdi), %rax
    ret
end jecxz_forward

# Jumps to its own first byte, from inside the displaced bytes and from behind them.
function loop_to_start
    dec %edi
    jg loop_to_start
    lea (%rdi,%rsi), %rax
    ret
end loop_to_start

function loop_to_start_later
    dec %edi
    add $3, %esi
    mov %esi, %eax
    test %edi, %edi
    jg loop_to_start_later
    ret
end loop_to_start_later

# The loop begins inside the five bytes; a hop of two fits before it.
function loop_inside
    xor %eax, %eax
1:  add %esi, %eax
    dec %edi
    jg 1b
    ret
end loop_inside

# The loop begins at the second byte: not even a hop fits.
function loop_at_second
    nop
1:  add %esi, %edi
    dec %esi
    jg 1b
    mov %edi, %eax
    ret
end loop_at_second

# As loop_inside, but its fill is too far for a short jump.
function loop_inside_far
    xor %eax, %eax
1:  add %esi, %eax
    dec %edi
    jg 1b
    .skip 130, 0x90
    ret
end loop_inside_far

# As loop_inside, with no fill behind it: the next function follows at once.
function loop_inside_packed
    xor %eax, %eax
1:  add %esi, %eax
    dec %edi
    jg 1b
    ret
end loop_inside_packed
function packed_neighbour, 1
    .skip 3, 0x90
    mov %edi, %eax
    ret
end packed_neighbour

function short_three
    mov %edi, %eax
    ret
end short_three

function short_two
    nop
    ret
end short_two

function short_one
    ret
end short_one

# Too short, and another function behind it at once.
function short_packed
    mov %edi, %eax
    ret
end short_packed
function packed_nops, 1
    .skip 8, 0x90
    mov %edi, %eax
    ret
end packed_nops

function ends_in_five
    mov %edi, %eax
    add %esi, %eax
    ret
end ends_in_five

function system_call
    mov $39, %eax
    syscall
    ret
end system_call

# rax holds no number of a system call: it fails, always in the same way.
function system_call_inside
    push %rdi
    pop %rdi
    syscall
    ret
end system_call_inside
    .text
    .balign 16

# Its first bytes lie on two pages.
    .text
    .balign 4096
    .skip 4096 - 3, 0xcc
function across_pages, 1
    lea (%rdi,%rsi), %rax
    ret
end across_pages
# Two bytes before the end of a page: a hop fits.
    .text
    .balign 4096
    .skip 4096 - 2, 0xcc
function hop_at_page_end, 1
    mov %edi, %eax
    add %esi, %eax
    ret
end hop_at_page_end
    .text
    .balign 16
    .balign 4096
    .skip 4096 - 1, 0xcc
function one_byte_of_page, 1
    lea (%rdi,%rsi), %rax
    ret
end one_byte_of_page
    .text
    .balign 16
