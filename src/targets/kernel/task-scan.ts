import { LivegraftError } from '../../base/errors.js';
import { addressOf, type FieldPlace, type KernelLayout, numberOf, textOf } from './kernel-layout.js';

/** Copies guest memory; undefined where nothing is mapped, or (in a stopped guest) where it is not known yet. */
export type ReadNow = (address: number, sizeBytes: number) => Uint8Array | undefined;

/** Where a scan reads. */
export interface ScanSource {
  /** Runs `attempt`, which has no effects, until it has all that it asks for. The guest may run between two calls. */
  attempt<T>(attempt: (read: ReadNow) => T): Promise<T>;
  /** Lets the guest run for a moment: it was met in the middle of a change. */
  rest(): Promise<void>;
}

/** What a scan tells of a task. */
export interface ScannedTask {
  readonly address: number;
  readonly pid: number;
  readonly name: string;
  readonly isIdle: boolean;
  /** The word that says whether it has switched. */
  readonly stateWord: number;
}

interface Seen extends ScannedTask {
  /** Of its link in the list that is walked, and where that points back to. */
  readonly link: number;
  readonly previous: number;
  readonly startTime: number;
  readonly hasStack: boolean;
  readonly signal: number;
  readonly isOnlyThread: boolean;
}

/** Fields that lie closer together than this are read in one go. */
const MERGE_BYTES = 512;
/** A list that changes under each of so many looks is damaged. */
const MAX_LOST = 2000;

type Field =
  | 'comm'
  | 'nextTask'
  | 'nextThread'
  | 'pid'
  | 'previousTask'
  | 'previousThread'
  | 'signal'
  | 'stack'
  | 'startTime'
  | 'state';

/**
 * Goes through the kernel's tasks while the guest runs, or in many short stops.
 *
 * What it promises: when it names only tasks that have switched, every task had switched when it ended. For the lists are
 * in the order of creation (`list_add_tail_rcu` in `copy_process`), and a new task has its creator's state. Behind the
 * place where the scan is, all have switched, and so have those that they create; what others create comes later in
 * the list. A step from one task to the next counts when the next one points back and the first is still the same
 * task: then it was in the list, and nobody between them. Where that fails, the scan goes back to the last task that
 * is still there. (A thread that takes its leader's place by execve takes its place in the list, too.) A task that is
 * inside of `copy_process` has a child that is in no list yet: it must not switch (`kernel-transition.ts`).
 */
export class TaskScan {
  readonly #source: ScanSource;
  readonly #places: Readonly<Record<Field, FieldPlace>>;
  readonly #ranges: readonly { readonly offset: number; readonly sizeBytes: number }[];
  readonly #threadHead: number;
  readonly #head: number;

  /** `head`: address of the first task's task_struct. */
  constructor(source: ScanSource, layout: Pick<KernelLayout, 'expect'>, head: number, state: FieldPlace) {
    const task = (path: string) => layout.expect('task_struct', path);
    const [tasks, thread] = [task('tasks').offset, task('thread_node').offset];
    this.#source = source;
    this.#places = {
      nextTask: { offset: tasks, sizeBytes: 8 },
      previousTask: { offset: tasks + 8, sizeBytes: 8 },
      nextThread: { offset: thread, sizeBytes: 8 },
      previousThread: { offset: thread + 8, sizeBytes: 8 },
      ...{ comm: task('comm'), pid: task('pid'), signal: task('signal'), stack: task('stack') },
      ...{ startTime: task('start_time'), state },
    };
    this.#ranges = mergeFields(Object.values(this.#places));
    this.#threadHead = layout.expect('signal_struct', 'thread_head').offset;
    this.#head = head;
  }

  /** Rejects with `guest-inconsistent` when the lists can't be followed. */
  async *tasks(idle: Iterable<number>): AsyncGenerator<ScannedTask> {
    for (const address of idle) {
      const task = await this.#source.attempt((read) => this.#look(read, address, 'nextTask'));
      if (task !== undefined) yield { ...task, isIdle: true };
    }
    for await (const leader of this.#list(this.#head + this.#places.nextTask.offset, 'nextTask')) {
      if (!leader.isOnlyThread) {
        const head = leader.signal + this.#threadHead;
        for await (const thread of this.#list(head, 'nextThread', leader)) if (thread.hasStack) yield thread;
      } else if (leader.hasStack) yield leader;
    }
  }

  async *#list(head: number, member: 'nextTask' | 'nextThread', leader?: Seen): AsyncGenerator<Seen> {
    const passed: Seen[] = [];
    for (let lost = 0; ; ) {
      const last = passed.at(-1);
      const step = await this.#source.attempt((read) => this.#step(read, head, member, last));
      if (step === 'end') return;
      if (step !== undefined) {
        passed.push(step);
        yield step;
        continue;
      }
      // Without its leader a process is gone, or was replaced: the list of processes will say.
      if (leader !== undefined && !(await this.#source.attempt((read) => this.#isSame(read, leader)))) return;
      if (++lost > MAX_LOST) {
        throw new LivegraftError('guest-inconsistent', "the guest's list of tasks can't be followed", {
          remedy: 'repeat the command; if that does not help, the guest is damaged',
        });
      }
      // Once more from the same place, then from the one before.
      if (lost % 2 === 0) passed.pop();
      await this.#source.rest();
    }
  }

  /** The task behind `last`; undefined when that is not certain. */
  #step(
    read: ReadNow,
    head: number,
    member: 'nextTask' | 'nextThread',
    last: Seen | undefined,
  ): Seen | 'end' | undefined {
    const at = last?.link ?? head;
    const next = word(read, at);
    if (next === undefined || next >= 0) return undefined;
    const seen =
      next === head ? undefined : this.#look(read, next - this.#places[member].offset, member, next);
    const back = next === head ? word(read, head + 8) : seen?.previous;
    if (back !== at || (last !== undefined && !this.#isSame(read, last))) return undefined;
    return next === head ? 'end' : seen;
  }

  #isSame(read: ReadNow, known: Seen): boolean {
    const { pid, startTime } = this.#places;
    const [pidAt, pidRest] = aligned(known.address, pid.offset);
    const [a, b] = [read(pidAt, pidRest + 4), read(known.address + startTime.offset, 8)];
    return (
      a !== undefined &&
      b !== undefined &&
      numberOf(a.subarray(pidRest)) === known.pid &&
      numberOf(b) === known.startTime
    );
  }

  #look(
    read: ReadNow,
    address: number,
    member: 'nextTask' | 'nextThread',
    link = address + this.#places[member].offset,
  ): Seen | undefined {
    const parts: Uint8Array[] = [];
    for (const { offset, sizeBytes } of this.#ranges) {
      const part = read(address + offset, sizeBytes);
      if (part === undefined) return undefined;
      parts.push(part);
    }
    const bytes = (field: Field): Uint8Array => {
      const { offset, sizeBytes } = this.#places[field];
      const index = this.#ranges.findIndex((r) => offset >= r.offset && offset < r.offset + r.sizeBytes);
      const from = offset - (this.#ranges[index]?.offset ?? 0);
      return (parts[index] as Uint8Array).subarray(from, from + sizeBytes);
    };
    const signal = addressOf(bytes('signal'));
    const threads = signal + this.#threadHead;
    return {
      address,
      link,
      pid: numberOf(bytes('pid')),
      name: textOf(bytes('comm')),
      isIdle: false,
      stateWord: numberOf(bytes('state')) | 0,
      previous: addressOf(bytes(member === 'nextTask' ? 'previousTask' : 'previousThread')),
      startTime: numberOf(bytes('startTime')),
      hasStack: addressOf(bytes('stack')) !== 0,
      signal,
      isOnlyThread:
        addressOf(bytes('nextThread')) === threads && addressOf(bytes('previousThread')) === threads,
    };
  }
}

function word(read: ReadNow, address: number): number | undefined {
  const bytes = read(address, 8);
  return bytes && addressOf(bytes);
}

/** A sum with an offset that is no multiple of 8 might not be exact (`src/base/brand.ts`). */
function aligned(base: number, offset: number): readonly [address: number, rest: number] {
  const rest = offset % 8;
  return [base + (offset - rest), rest];
}

/** Ranges, at multiples of 8, that cover all of the fields. */
export function mergeFields(fields: readonly FieldPlace[]): { offset: number; sizeBytes: number }[] {
  const ranges: { offset: number; sizeBytes: number }[] = [];
  for (const { offset, sizeBytes } of [...fields].sort((a, b) => a.offset - b.offset)) {
    const [start, end] = [Math.floor(offset / 8) * 8, Math.ceil((offset + sizeBytes) / 8) * 8];
    const last = ranges.at(-1);
    if (last !== undefined && start <= last.offset + last.sizeBytes + MERGE_BYTES)
      last.sizeBytes = Math.max(last.sizeBytes, end - last.offset);
    else ranges.push({ offset: start, sizeBytes: end - start });
  }
  return ranges;
}
