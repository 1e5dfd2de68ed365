import { describe, expect, it } from 'vitest';
import { layoutOf } from '../../../test/support/btf-layout.js';
import type { GdbClient } from './gdb-client.js';
import type { GuestMemory } from './guest-memory.js';
import { TaskReader } from './kernel-tasks.js';
import type { KernelAddresses } from './running-kernel.js';

/** What the reader of tasks needs of every kernel, whatever the members lie behind. */
const TASKS = `
typedef struct list_head { struct list_head *next, *prev; } list_head;
struct signal_struct { list_head thread_head; };
struct thread_struct { unsigned long sp; };
struct rq { struct task_struct *idle; };
struct task_struct {
  unsigned __state; void *stack; unsigned flags; int on_cpu; list_head tasks; int exit_state, pid, tgid;
  struct signal_struct *signal; list_head thread_node; char comm[16]; struct thread_struct thread;
};
struct task_struct task; struct signal_struct signals; struct rq queue;
`;
const HOT = 'struct pcpu_hot { struct task_struct *current_task; int preempt_count; } hot;';
/** Of some other kernel, in which it is not the first. */
const HOT_BEHIND = 'struct pcpu_hot { int preempt_count; struct task_struct *current_task; } hot;';

const variable = (types: string, symbols: Readonly<Record<string, number>>) => {
  const find = (name: string) => symbols[name];
  const expected = (name: string) => {
    const found = find(name);
    if (found === undefined) throw new Error(`no ${name}`);
    return found;
  };
  const kernel = { find, expect: expected } as unknown as KernelAddresses;
  const layout = layoutOf(`${TASKS}${types}`);
  return new TaskReader({} as GdbClient, {} as GuestMemory, kernel, layout).currentVariable;
};

describe('the current task', () => {
  it.each([
    ['up to 6.1, in a per-CPU variable of its own', '', { current_task: 0x1fbc0 }, 0x1fbc0],
    ['from 6.2 to 6.14, in pcpu_hot', HOT, { pcpu_hot: 0x34000 }, 0x34000],
    ['there, wherever the types say that it lies', HOT_BEHIND, { pcpu_hot: 0x34000 }, 0x34008],
    [
      'from 6.15 on, in a per-CPU variable again, at a kernel address',
      '',
      { current_task: -0x7d2c_7d38 },
      -0x7d2c_7d38,
    ],
    ['in the variable, where only the type is left', HOT, { current_task: 0x1fbc0 }, 0x1fbc0],
  ])('is %s', (_, types, symbols, address) => {
    expect(variable(types, symbols)).toBe(address);
  });

  it('is looked for nowhere else', () => {
    expect(() => variable('', { pcpu_hot: 0x34000 })).toThrow('current_task');
  });
});
