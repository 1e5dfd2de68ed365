/**
 * Functions that never return by their documentation: the C and C++ runtimes' (C17 7.22.4, 7.13.2; Itanium C++ ABI),
 * and the kernel's that are marked `__noreturn`; those of sanitizers that compilers call where the program is to end. Others are found by how they are called and by what they contain.
 */
const NAMES = new Set(
  [
    'abort exit _exit _Exit quick_exit __assert_fail __assert_perror_fail __assert __stack_chk_fail',
    '__chk_fail __fortify_fail __libc_fatal longjmp _longjmp siglongjmp __longjmp_chk pthread_exit',
    'err errx verr verrx thrd_exit __libc_start_main _dl_signal_error _dl_fatal_printf __libc_message_impl',
    '__cxa_throw __cxa_rethrow __cxa_bad_cast __cxa_bad_typeid __cxa_throw_bad_array_new_length _Unwind_Resume',
    '__cxa_call_unexpected __cxa_call_terminate __cxa_pure_virtual __cxa_deleted_virtual _ZSt9terminatev',
    '_ZSt10unexpectedv __clang_call_terminate __rust_start_panic',
    'runtime.gopanic runtime.throw runtime.fatal runtime.fatalthrow runtime.fatalpanic runtime.exit.abi0',
    'panic do_exit do_group_exit do_task_dead make_task_dead rewind_stack_and_make_dead kthread_exit',
    'kthread_complete_and_exit __module_put_and_kthread_exit module_put_and_kthread_exit fortify_panic',
    'usercopy_abort __invalid_creds __reiserfs_panic __ubsan_handle_builtin_unreachable cpu_bringup_and_idle',
    'cpu_startup_entry ex_handler_msr_mce hlt_play_dead kunit_try_catch_throw lbug_with_loc machine_real_restart',
    'mpt_halt_firmware nmi_panic_self_stop panic_smp_self_stop rest_init sev_es_terminate snp_abort',
    'stop_this_cpu x86_64_start_kernel x86_64_start_reservations xen_cpu_bringup_again xen_start_kernel',
    'start_kernel start_secondary kthread_and_workqueue_exit tdx_panic __x86_call_depth_panic btrfs_assertfail',
    'fred_entry_from_user_bad arch_cpu_idle_dead play_dead machine_check_halt nlm_panic __tdx_hypercall_failed',
  ]
    .join(' ')
    .split(' '),
);

for (const bytes of ['1', '2', '4', '8', '16', '_n'])
  NAMES.add(`__asan_report_load${bytes}`).add(`__asan_report_store${bytes}`);
NAMES.add('__msan_warning_noreturn').add('__ubsan_handle_missing_return');
// With -fno-sanitize-recover.
for (const what of [
  'add_overflow sub_overflow mul_overflow negate_overflow divrem_overflow pointer_overflow float_cast_overflow',
  'shift_out_of_bounds out_of_bounds vla_bound_not_positive load_invalid_value invalid_builtin implicit_conversion',
  'type_mismatch_v1 alignment_assumption nonnull_arg nonnull_return_v1 nullability_arg nullability_return_v1',
  'function_type_mismatch function_type_mismatch_v1 cfi_check_fail dynamic_type_cache_miss',
])
  for (const name of what.split(' ')) NAMES.add(`__ubsan_handle_${name}_abort`);

/** Whether a function of that name never returns. */
export function isNoReturnName(name: string): boolean {
  return NAMES.has(name) || (name.startsWith('_ZSt') && /^_ZSt\d+__throw_/.test(name));
}

const FILTER_SIZE = 1 << 12;
const FILTER = new Uint8Array(FILTER_SIZE);
for (const name of NAMES) {
  const codes = [name.charCodeAt(0), name.charCodeAt(name.length - 1)] as const;
  FILTER[filterKey(name.length, ...codes)] = 1;
}

function filterKey(length: number, first: number, last: number): number {
  return ((length * 37) ^ (first * 5) ^ (last * 131)) & (FILTER_SIZE - 1);
}

/** False where no name of that length, with these bytes at its ends, can be one that {@link isNoReturnName} knows; of few others it is true. */
export function mayBeNoReturnName(length: number, first: number, second: number, last: number): boolean {
  return FILTER[filterKey(length, first, last)] === 1 || (first === 0x5f && second === 0x5a);
}
