/**
 * What a decoder says about one instruction: length, flow, target, stack operations, nothing else.
 *
 * Register numbers are DWARF's, as in `src/cfi/row.ts`.
 */

/** Where control can go after an instruction. */
export type Flow =
  /** Only to the next instruction. */
  | 'next'
  /** Direct unconditional jump to `target`. */
  | 'jump'
  /** Direct conditional jump: to `target` or on (jcc, loop, jrcxz, xbegin). */
  | 'branch'
  | 'indirectJump'
  /** Direct call to `target`, then on. */
  | 'call'
  | 'indirectCall'
  /** syscall, sysenter, int n: into the kernel, then on. */
  | 'systemCall'
  | 'return'
  /** iret, sysret, sysexit, uiret, rsm. */
  | 'interruptReturn'
  /** ud2, ud0, ud1, hlt: nothing follows. */
  | 'deadEnd'
  /** int3: a trap, padding, or a breakpoint. */
  | 'breakpoint';

/** The effect of one instruction on the stack pointer, the frame pointer and registers saved on the stack. */
export type StackOp =
  | { readonly kind: 'push'; readonly register: number; readonly sizeBytes: number }
  /** Push of an immediate, a memory operand, flags or a segment register. */
  | {
      readonly kind: 'pushOther';
      readonly sizeBytes: number;
      readonly source: 'immediate' | 'memory' | 'flags' | 'segment';
    }
  | { readonly kind: 'pop'; readonly register: number; readonly sizeBytes: number }
  | { readonly kind: 'popOther'; readonly sizeBytes: number; readonly target: 'memory' | 'flags' | 'segment' }
  /** destination = source + offset (mov, lea, add, sub with an immediate), when either is rsp, or destination is rbp. */
  | { readonly kind: 'add'; readonly destination: number; readonly source: number; readonly offset: number }
  /** rsp (or rbp) &= mask: stack realignment. */
  | { readonly kind: 'and'; readonly register: number; readonly mask: number }
  /** [base + offset] = register: a 64-bit store of a general register, with base rsp, rbp, or any other register. */
  | { readonly kind: 'store'; readonly register: number; readonly base: number; readonly offset: number }
  /** register = [base + offset]: a 64-bit load into a general register with base rsp, rbp, or any other register. */
  | { readonly kind: 'load'; readonly register: number; readonly base: number; readonly offset: number }
  /** mov rsp, rbp; pop rbp. */
  | { readonly kind: 'leave' }
  | { readonly kind: 'enter'; readonly sizeBytes: number; readonly nesting: number }
  /** The register (rsp, rbp, or another callee-saved one) is overwritten by something none of the above describes. */
  | { readonly kind: 'clobber'; readonly register: number }
  /** Pushed and popped by control flow itself: call pushes 8, ret pops 8 + n, iret pops its frame. */
  | { readonly kind: 'callPush' }
  | { readonly kind: 'returnPop'; readonly extraBytes: number };

/** A decoded instruction. `offset` and `target` are in the same number line (see {@link InstructionDecoder.decode}). */
export interface Instruction {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly flow: Flow;
  /** Of a direct jump, branch or call. */
  readonly target: number | undefined;
  readonly stackOps: readonly StackOp[];
}

/** Where the parts that a linker or a relocator may change lie inside an instruction, from its first byte. */
export interface InstructionFields {
  /** A rip-relative displacement: always 4 bytes. */
  readonly ripDisplacementAt: number | undefined;
  /** The relative target of a direct jump, branch or call. */
  readonly relativeTargetAt: number | undefined;
  readonly relativeTargetSizeBytes: 0 | 1 | 2 | 4;
  /** A displacement of another memory operand. */
  readonly displacementAt: number | undefined;
  readonly displacementSizeBytes: 0 | 1 | 4 | 8;
  readonly immediateAt: number | undefined;
  readonly immediateSizeBytes: 0 | 1 | 2 | 4 | 8;
}
