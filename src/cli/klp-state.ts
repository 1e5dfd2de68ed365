/** A patch as the kernel's own livepatch has it. */
export interface LivepatchState {
  readonly name: string;
  readonly enabled: boolean;
  /** Which way its transition goes, while it lasts. */
  readonly transition: 'patch' | 'unpatch' | null;
  readonly functions: readonly { readonly object: string; readonly name: string; readonly sympos: number }[];
  readonly stragglers: readonly LivepatchStraggler[];
}

export interface LivepatchStraggler {
  readonly tid: number;
  readonly name: string;
  /** Functions of its stack, innermost first, as the kernel prints them; empty for a task that runs. */
  readonly stack: readonly string[];
  /** The outermost patched function that it is in; null when its stack shows none. */
  readonly function: string | null;
}

/** What to run in the machine, with any shell; its output is what {@link parseLivepatchState} reads. */
export const LIVEPATCH_SNAPSHOT_COMMAND =
  'ls -d /sys/kernel/livepatch/*/*/*; grep -H . /sys/kernel/livepatch/*/enabled /sys/kernel/livepatch/*/transition /proc/[0-9]*/task/[0-9]*/patch_state /proc/[0-9]*/task/[0-9]*/comm /proc/[0-9]*/task/[0-9]*/stack';

/**
 * Reads a snapshot of /sys/kernel/livepatch and of the tasks' patch_state (Documentation/ABI/testing/sysfs-kernel-livepatch):
 * lines of `PATH:CONTENT` and of paths. Other lines are passed over, so that a console's output can be given as it is.
 */
export function parseLivepatchState(text: string): readonly LivepatchState[] {
  const attributes = new Map<string, Map<string, string>>();
  const functions = new Map<string, { object: string; name: string; sympos: number }[]>();
  const tasks = new Map<number, { state?: number; name?: string; stack: string[] }>();
  for (const line of text.split(/\r?\n/)) {
    const attribute = /^\/sys\/kernel\/livepatch\/([^/]+)\/(enabled|transition):(.*)$/.exec(line);
    const fn = /^\/sys\/kernel\/livepatch\/([^/]+)\/([^/]+)\/([^/,]+),(\d+)$/.exec(line);
    const task = /^\/proc\/\d+\/task\/(\d+)\/(patch_state|comm|stack):(.*)$/.exec(line);
    if (attribute !== null) {
      const [, patch, key, value] = attribute as unknown as [string, string, string, string];
      const known = attributes.get(patch) ?? new Map<string, string>();
      attributes.set(patch, known.set(key, value.trim()));
    } else if (fn !== null) {
      const [, patch, object, name, sympos] = fn as unknown as [string, string, string, string, string];
      functions.set(patch, [...(functions.get(patch) ?? []), { object, name, sympos: Number(sympos) }]);
    } else if (task !== null) {
      const [, tid, key, value] = task as unknown as [string, string, string, string];
      const known = tasks.get(Number(tid)) ?? { stack: [] };
      tasks.set(Number(tid), known);
      if (key === 'patch_state') known.state = Number(value);
      else if (key === 'comm') known.name = value;
      else known.stack.push(value.replace(/^\[<[^>]*>\]\s*/, '').trim());
    }
  }
  return [...attributes].map(([name, values]) => {
    const enabled = values.get('enabled') === '1';
    const isMoving = values.get('transition') === '1';
    const own = functions.get(name) ?? [];
    // klp_transition_patch is one at a time: the states of the tasks are about it.
    const wanted = enabled ? 1 : 0;
    const stragglers = isMoving
      ? [...tasks]
          .filter(([, task]) => task.state === 1 - wanted)
          .map(([tid, task]): LivepatchStraggler => {
            const called = task.stack.map((frame) => frame.replace(/[+ ].*$/, ''));
            const inside = called.findLast((frame) => own.some((fn) => fn.name === frame));
            return { tid, name: task.name ?? '', stack: task.stack, function: inside ?? null };
          })
      : [];
    const transition = !isMoving ? null : enabled ? 'patch' : 'unpatch';
    return { name, enabled, transition, functions: own, stragglers };
  });
}
