import { describe, expect, it } from 'vitest';
import type { FieldPlace } from './kernel-layout.js';
import { mergeFields, type ReadNow, type ScanSource, TaskScan } from './task-scan.js';

/** Small, fast and the same everywhere: mulberry32. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Offsets in a made-up task_struct, far enough apart for three ranges. */
const PLACES: Readonly<Record<string, FieldPlace>> = {
  stack: { offset: 32, sizeBytes: 8 },
  tasks: { offset: 1024, sizeBytes: 16 },
  pid: { offset: 1044, sizeBytes: 4 },
  start_time: { offset: 1056, sizeBytes: 8 },
  thread_node: { offset: 1072, sizeBytes: 16 },
  comm: { offset: 1088, sizeBytes: 16 },
  signal: { offset: 1104, sizeBytes: 8 },
};
const STATE: FieldPlace = { offset: 2044, sizeBytes: 4 };
const THREAD_HEAD: FieldPlace = { offset: 16, sizeBytes: 16 };
const layout = {
  expect: (struct: string, path: string): FieldPlace =>
    struct === 'signal_struct' ? THREAD_HEAD : (PLACES[path] as FieldPlace),
};
const at = (task: number, name: string): number => task + (PLACES[name] as FieldPlace).offset;
const POISON = 0x122;
const SWITCHED = 7;

/** Tasks in memory, with the kernel's own order of writes: lists are changed word by word, memory is used again. */
class FakeKernel {
  readonly bytes = new Map<number, Uint8Array>();
  readonly alive = new Map<number, { leader: number; pid: number }>();
  readonly head = -0x1000_0000;
  readonly #free: number[] = [];
  #next = -0x0fff_0000;
  #serial = 1;

  constructor() {
    this.#write(at(this.head, 'tasks'), at(this.head, 'tasks'));
    this.#write(at(this.head, 'tasks') + 8, at(this.head, 'tasks'));
    for (let i = 0; i < 5; i++) this.create(undefined, false);
  }

  read: ReadNow = (address, sizeBytes) => {
    const bytes = new Uint8Array(sizeBytes);
    for (let i = 0; i < sizeBytes; i += 4) bytes.set(this.bytes.get(address + i) ?? new Uint8Array(4), i);
    return bytes;
  };

  word(address: number): number {
    const bytes = this.read(address, 8) as Uint8Array;
    return Number(new DataView(bytes.buffer).getBigInt64(0, true));
  }

  stateOf(task: number): number {
    return (this.read(task + STATE.offset, 4) as Uint8Array)[0] as number;
  }

  setState(task: number, value: number): void {
    this.bytes.set(task + STATE.offset, Uint8Array.of(value, 0, 0, 0));
  }

  create(parent: number | undefined, isThread: boolean): number {
    const task = this.#free.pop() ?? this.#next;
    if (task === this.#next) this.#next += 0x2000;
    const pid = this.#serial++;
    const leader = isThread && parent !== undefined ? (this.alive.get(parent)?.leader ?? task) : task;
    const signal = leader === task ? pid * 0x100 - 0x4000_0000 : this.word(at(leader, 'signal'));
    this.#write(at(task, 'stack'), -8);
    this.bytes.set(at(task, 'pid'), new Uint8Array(new Uint32Array([pid]).buffer));
    this.#write(at(task, 'start_time'), pid * 1000);
    this.#write(at(task, 'signal'), signal);
    this.bytes.set(at(task, 'comm'), Uint8Array.of(0x74, 0, 0, 0));
    this.setState(task, parent === undefined ? 0 : this.stateOf(parent));
    this.alive.set(task, { leader, pid });
    if (leader === task) {
      this.#write(signal + THREAD_HEAD.offset, signal + THREAD_HEAD.offset);
      this.#write(signal + THREAD_HEAD.offset + 8, signal + THREAD_HEAD.offset);
      this.#addTail(at(task, 'tasks'), at(this.head, 'tasks'));
    }
    this.#addTail(at(task, 'thread_node'), signal + THREAD_HEAD.offset);
    return task;
  }

  /** A leader ends with all its threads. */
  end(task: number): void {
    const entry = this.alive.get(task);
    if (entry === undefined) return;
    if (entry.leader === task)
      for (const [other, { leader }] of [...this.alive])
        if (leader === task && other !== task) this.#release(other, false);
    this.#release(task, entry.leader === task);
  }

  /** A thread that is not the leader runs another program: it takes the leader's place and pid. */
  exec(task: number): void {
    const entry = this.alive.get(task);
    if (entry === undefined || entry.leader === task) return;
    const { leader } = entry;
    for (const [other, each] of [...this.alive])
      if (each.leader === leader && other !== task && other !== leader) this.#release(other, false);
    const [previous, next] = [this.word(at(leader, 'tasks') + 8), this.word(at(leader, 'tasks'))];
    this.#write(at(task, 'tasks'), next);
    this.#write(at(task, 'tasks') + 8, previous);
    this.#write(previous, at(task, 'tasks'));
    this.#write(next + 8, at(task, 'tasks'));
    this.#write(at(leader, 'tasks') + 8, POISON);
    const pid = this.alive.get(leader)?.pid as number;
    this.bytes.set(at(task, 'pid'), this.read(at(leader, 'pid'), 4) as Uint8Array);
    this.#unlink(at(leader, 'thread_node'));
    this.alive.delete(leader);
    this.#free.push(leader);
    this.alive.set(task, { leader: task, pid });
  }

  #release(task: number, isLeader: boolean): void {
    if (isLeader) this.#unlink(at(task, 'tasks'));
    this.#unlink(at(task, 'thread_node'));
    this.alive.delete(task);
    this.#free.push(task);
  }

  #addTail(link: number, head: number): void {
    const previous = this.word(head + 8);
    this.#write(link, head);
    this.#write(link + 8, previous);
    this.#write(previous, link);
    this.#write(head + 8, link);
  }

  /** As `list_del_rcu`: the way on stays, for readers. */
  #unlink(link: number): void {
    const [next, previous] = [this.word(link), this.word(link + 8)];
    this.#write(next + 8, previous);
    this.#write(previous, next);
    this.#write(link + 8, POISON);
  }

  #write(address: number, value: number): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigInt64(0, BigInt(value), true);
    this.bytes.set(address, bytes.subarray(0, 4));
    this.bytes.set(address + 4, bytes.subarray(4));
  }
}

/** The kernel goes on between any two reads. */
function livingSource(kernel: FakeKernel, next: () => number): ScanSource {
  const live = (): void => {
    const tasks = [...kernel.alive.keys()];
    const task = tasks[Math.floor(next() * tasks.length)] as number;
    const chance = next();
    if (chance < 0.12) kernel.create(task, chance < 0.05);
    else if (chance < 0.24 && tasks.length > 4) kernel.end(task);
    else if (chance < 0.3) kernel.exec(task);
  };
  const read: ReadNow = (address, sizeBytes) => {
    // Now and then the scan does not get on for a while.
    for (let i = next() < 0.05 ? 60 : 1; i > 0; i--) live();
    return kernel.read(address, sizeBytes);
  };
  return { attempt: async (attempt) => attempt(read), rest: async () => {} };
}

describe('a scan of tasks that come and go', () => {
  it('names all tasks of a guest in which nothing happens, and no other', async () => {
    const kernel = new FakeKernel();
    const [first] = kernel.alive.keys();
    for (let i = 0; i < 3; i++) kernel.create(first, true);
    const source: ScanSource = { attempt: async (attempt) => attempt(kernel.read), rest: async () => {} };
    const seen: number[] = [];
    for await (const task of new TaskScan(source, layout, kernel.head, STATE).tasks([]))
      seen.push(task.address);
    expect(seen.sort()).toEqual([...kernel.alive.keys()].sort());
  });

  it.each(Array.from({ length: 150 }, (_, i) => i + 1))(
    'finds only switched tasks when there are only switched tasks (seed %i)',
    async (seed) => {
      const next = random(seed);
      const kernel = new FakeKernel();
      const scan = new TaskScan(livingSource(kernel, next), layout, kernel.head, STATE);
      for (let pass = 0; pass < 2000; pass++) {
        const waiting: { address: number; pid: number }[] = [];
        for await (const task of scan.tasks([])) if (task.stateWord !== SWITCHED) waiting.push(task);
        if (waiting.length === 0) {
          const left = [...kernel.alive].filter(([task]) => kernel.stateOf(task) !== SWITCHED);
          expect(left).toEqual([]);
          return;
        }
        // Some of them are busy each time.
        for (const { address, pid } of waiting)
          if (next() < 0.9 && kernel.alive.get(address)?.pid === pid) kernel.setState(address, SWITCHED);
      }
      throw new Error('the passes never ended');
    },
  );

  it('refuses a list that can not be followed', async () => {
    const kernel = new FakeKernel();
    const [first] = kernel.alive.keys();
    const broken: ReadNow = (address, sizeBytes) =>
      address === at(first as number, 'tasks') ? new Uint8Array(sizeBytes) : kernel.read(address, sizeBytes);
    const source: ScanSource = { attempt: async (attempt) => attempt(broken), rest: async () => {} };
    const all = async () => {
      for await (const _ of new TaskScan(source, layout, kernel.head, STATE).tasks([]));
    };
    await expect(all()).rejects.toMatchObject({ code: 'guest-inconsistent' });
  });
});

describe('mergeFields', () => {
  it('covers fields by few aligned ranges', () => {
    expect(mergeFields([...Object.values(PLACES), STATE])).toEqual([
      { offset: 32, sizeBytes: 8 },
      { offset: 1024, sizeBytes: 88 },
      { offset: 2040, sizeBytes: 8 },
    ]);
  });
});
