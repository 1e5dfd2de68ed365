import type { DifferingPlace } from './orc-agreement.js';

/** Why some instructions of a kernel differ from objtool's table. docs/validation-results.md has a row for each class, by its name. */
export interface AgreementClass {
  readonly name: string;
  readonly has: (place: DifferingPlace) => boolean;
}

/** Of assembly that switches stacks or makes a frame up, and says so by unwind hints, which the final link drops. */
const HINTED =
  /^(__switch_to_asm|restore_registers|wakeup_long64|rewind_stack_and_make_dead|arch_rethook_trampoline|sev_verify_cbit|__vmx_vcpu_run|srso_(alias_)?safe_ret|srso_(alias_)?return_thunk)$/;
/** By `STACK_FRAME_NON_STANDARD()`, or by `OBJECT_FILES_NON_STANDARD` in the makefile of their file or folder. */
const LEFT_OUT =
  /^(do_suspend_lowlevel|__crash_kexec|machine_real_restart|__efi64_thunk|clear_bhb_loop|pvh_start_xen|fixup_vdso_exception|vdso32_setup|sysenter_setup|ia32_binfmt_init)$/;
const STUB_ARRAYS = /^(irq_entries_start|spurious_entries_start|(xen_)?early_idt_handler_array)$/;
const LABELS =
  /^(__thunk_restore|\.slowpath|ftrace_call|ftrace_caller_end|ftrace_regs_caller_(jmp|end)|__end_entry_SYSENTER_compat)$/;
const SPECULATION = /^(__x86_indirect_(call_|jump_)?thunk_\w+|retbleed_return_thunk|srso_(alias_)?safe_ret)$/;
/** Of ways into the kernel and out of it, where the stack pointer is scratch, or frames are copied. */
const ENTRY_CODE =
  /^(entry_SYSCALL_64|entry_SYSCALL_compat|asm_exc_int3|nmi_restore|xenpv_restore_regs_and_return_to_usermode)$/;
const MODE_SWITCHES = /^(startup_64|secondary_startup_64(_no_verify)?)$/;

/** The first that has a place counts. */
export const AGREEMENT_CLASSES: readonly AgreementClass[] = [
  { name: 'feature tests', has: ({ kind, section }) => kind === 'unclaimed' && section === '.altinstr_aux' },
  {
    name: 'two replacements',
    has: ({ kind, section }) =>
      (kind === 'disproved' || kind === 'unknown') && section === '.altinstr_replacement',
  },
  {
    name: 'feature tests',
    has: ({ kind, function: name }) => kind === 'conflicts' && name === 'cc_random_init',
  },
  { name: 'left out', has: ({ function: name }) => LEFT_OUT.test(name) },
  {
    name: 'left out',
    has: ({ kind, section }) => kind === 'unclaimed' && section === '.altinstr_replacement',
  },
  { name: 'labels', has: ({ kind, function: name }) => kind !== 'unreached' && LABELS.test(name) },
  { name: 'speculation', has: ({ kind, function: name }) => kind === 'unreached' && SPECULATION.test(name) },
  { name: 'hints', has: ({ function: name }) => HINTED.test(name) },
  { name: 'entry code', has: ({ kind, function: name }) => kind === 'conflicts' && ENTRY_CODE.test(name) },
  {
    name: 'two stack pointers',
    has: ({ kind, function: name }) => kind === 'conflicts' && name === 'poly1305_blocks_avx512',
  },
  { name: 'stub arrays', has: ({ kind, function: name }) => kind === 'unreached' && STUB_ARRAYS.test(name) },
  {
    name: 'mode switches',
    has: ({ kind, function: name }) => kind === 'unreached' && MODE_SWITCHES.test(name),
  },
  { name: 'false trap', has: ({ kind, function: name }) => kind === 'unreached' && name === 'xen_cpuid' },
  { name: 'no return', has: ({ kind, behind }) => kind === 'unreached' && behind === 'call' },
  { name: 'no return', has: ({ kind, function: name }) => kind === 'unclaimed' && name === 'xen_iret' },
  {
    name: 'interrupt return',
    has: ({ kind, behind }) => kind === 'unreached' && behind === 'interruptReturn',
  },
  {
    name: 'no symbol',
    has: ({ kind, behind }) => kind === 'unreached' && /^(padding|jump|return)$/.test(behind),
  },
];

/** Undefined for what nothing explains. */
export function classOf(place: DifferingPlace): string | undefined {
  return AGREEMENT_CLASSES.find((each) => each.has(place))?.name;
}
