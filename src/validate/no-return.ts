import { FlowCode, isInert } from '../arch/instruction-table.js';
import { lowerBound, type Program } from './program.js';

/**
 * Functions that never return by their documentation: the C and C++ runtimes' (C17 7.22.4, 7.13.2; Itanium C++ ABI),
 * and the kernel's that are marked `__noreturn`. Others are found by how they are called and by what they contain.
 */
const NAMES = new Set(
  [
    'abort exit _exit _Exit quick_exit __assert_fail __assert_perror_fail __assert __stack_chk_fail',
    '__chk_fail __fortify_fail __libc_fatal longjmp _longjmp siglongjmp __longjmp_chk pthread_exit',
    'err errx verr verrx thrd_exit __libc_start_main _dl_signal_error _dl_fatal_printf __libc_message_impl',
    '__cxa_throw __cxa_rethrow __cxa_bad_cast __cxa_bad_typeid __cxa_throw_bad_array_new_length _Unwind_Resume',
    '__cxa_call_unexpected __cxa_call_terminate __cxa_pure_virtual __cxa_deleted_virtual _ZSt9terminatev',
    '_ZSt10unexpectedv __clang_call_terminate __rust_start_panic',
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

function isNoReturnName(name: string): boolean {
  return NAMES.has(name) || /^_ZSt\d+__throw_/.test(name);
}

/**
 * Which call targets (positions, or external targets) never return. By name; by evidence, when a function's code ends in
 * a call, or a call is followed by nothing but padding; and by content: no way through the function leads to a return or
 * out of it. `resumed`: positions of instructions that control may go on behind although they don't look so.
 */
export function findNoReturnTargets(program: Program, resumed: readonly number[]): ReadonlySet<number> {
  const { table, functions, index } = program;
  const { flows, targets, offsets, lengths } = table;
  const found = new Set<number>();
  const goesOn = new Set(resumed);
  for (const symbol of program.elf.symbols) {
    if (symbol.sectionIndex === 0 && symbol.index > 0 && isNoReturnName(symbol.name))
      found.add(-2 - symbol.index);
  }
  for (const [position, name] of program.linkageNames) if (isNoReturnName(name)) found.add(position);
  for (const { name, start } of functions) if (name !== undefined && isNoReturnName(name)) found.add(start);

  for (const { end, start } of functions) {
    let last = lowerBound(offsets, table.count, end) - 1;
    if (last < 0 || (offsets[last] as number) + (lengths[last] as number) > end) continue;
    // Padding may follow.
    while (last >= 0 && (offsets[last] as number) >= start && isInert(table, last)) last--;
    if (last >= 0 && (offsets[last] as number) >= start && flows[last] === FlowCode.call) {
      found.add(targets[last] as number);
    }
  }
  // By content, until nothing changes: a function that only calls such functions is one too.
  const seen = new Int32Array(table.count);
  let stamp = 0;
  const entries = functions.filter((f) => !f.isPart && !found.has(f.start));
  for (let rounds = 0; rounds < 8; rounds++) {
    let changed = false;
    for (const f of entries) {
      if (found.has(f.start)) continue;
      const first = index.find(f.start);
      if (first >= 0 && !mayReturn(program, first, found, goesOn, seen, ++stamp)) {
        found.add(f.start);
        changed = true;
      }
    }
    if (!changed) break;
  }
  found.delete(-1);
  return found;
}

const MAX_STEPS = 4000;

/** Most functions show a return soon; one that is too long to tell is taken to return. */
function mayReturn(
  program: Program,
  first: number,
  noReturn: ReadonlySet<number>,
  goesOn: ReadonlySet<number>,
  seen: Int32Array,
  stamp: number,
): boolean {
  const { table, targetIndexes, functionStarts } = program;
  const { flows, targets, offsets, lengths, count } = table;
  const work = [first];
  let steps = 0;
  for (;;) {
    let i = work.pop();
    if (i === undefined) return false;
    for (; i < count && seen[i] !== stamp; i++) {
      if (++steps > MAX_STEPS) return true;
      seen[i] = stamp;
      const flow = flows[i] as number;
      const target = targetIndexes[i] as number;
      if (flow === FlowCode.jump || flow === FlowCode.branch) {
        // A sibling call returns if what it jumps to does.
        const position = targets[i] as number;
        if (target < 0 || (functionStarts.has(position) && target !== first)) {
          if (!noReturn.has(position)) return true;
        } else work.push(target);
        if (flow === FlowCode.jump && !goesOn.has(offsets[i] as number)) break;
      } else if (flow === FlowCode.call) {
        if (noReturn.has(targets[i] as number)) break;
      } else if (flow === FlowCode.deadEnd) {
        if (!goesOn.has(offsets[i] as number)) break;
      } else if (
        flow === FlowCode.return ||
        flow === FlowCode.indirectJump ||
        flow === FlowCode.interruptReturn
      ) {
        return true;
      }
      // Code that does not follow on was not decoded.
      if (i + 1 >= count || (offsets[i + 1] as number) !== (offsets[i] as number) + (lengths[i] as number))
        return true;
    }
  }
}
