import type { CallbackKind, CallbackStage } from '../../engine/callbacks.js';
import type { SystemState } from '../../engine/states.js';
import { VersionStack } from '../../engine/version-stack.js';
import type { Choices } from './choices.js';
import { ALL_FUNCTIONS, FUNCTIONS, LIBRARY, LIBRARY_FUNCTIONS, objectOf, PROGRAM } from './objects.js';
import { Oracle } from './oracle.js';
import { frameOf, type SimulatedFrame, type SimulatedSlot, type SimulatedTask, stateOf } from './task.js';

/** A simulated program that can be patched. It does what its choices say, one thing at a time, and its oracle watches. */

export interface SimulatedFunction {
  readonly name: string;
  /** The patch that brought this version. */
  readonly patch: string;
}

export interface SimulatedPatch {
  readonly id: string;
  readonly functions: readonly SimulatedFunction[];
  /** All older patches go in the same transition. */
  readonly replaces: boolean;
  /** What runs in the program; what the pre-patch one answers but 0 is a veto. */
  readonly states?: readonly SystemState[];
  readonly callbacks?: Readonly<Partial<Record<CallbackKind, (object: string) => number>>>;
}

/** What a patch has for an object that is there, as the registry of a target keeps it. */
export interface SimulatedPart {
  /** Of which loading of the library: loaded anew, it is another object. */
  readonly load: number;
  state: 'loaded' | 'installed';
  /** What entries that lead through it ask, whoever lives: the version below, the state of the task, or the new version. */
  gate: 'shut' | 'choosing' | 'open';
}

/** Where the first instructions of a function lead. */
export type SimulatedEntry =
  | { readonly kind: 'fixed'; readonly version: string | undefined }
  | {
      readonly kind: 'gated';
      readonly gate: SimulatedPart;
      readonly patched: string | undefined;
      readonly unpatched: string | undefined;
    }
  | {
      readonly kind: 'choosing';
      readonly patched: string | undefined;
      readonly unpatched: string | undefined;
    };

export interface SimulatedChange {
  readonly patch: string;
  /** Only these objects of the patch take part; all of them without. */
  readonly objects?: readonly string[];
  readonly direction: 'patch' | 'unpatch';
  /** Tasks have states that count only while it runs. */
  readonly phase: 'installing' | 'running' | 'finishing';
}

export type MachineEvent = 'created' | 'exited' | 'moved' | 'switched';

export interface MachineOptions {
  readonly choices: Choices;
  readonly tasks: number;
  /** No more are created than there may be at a time. */
  readonly mostTasks: number;
  readonly longestSleep: number;
  /** Threads only: nobody forks, or executes another program. */
  readonly isOneProcess?: boolean;
  /** No task is created, and none ends. */
  readonly isSteady?: boolean;
  /** Tasks load and unload the library. */
  readonly hasLibrary?: boolean;
  /** The program needs its GS bases itself: states are in a table. */
  readonly hasStateTable?: boolean;
  /** What tasks call; all functions where it is not given. */
  readonly calls?: readonly string[];
  /** Told what happens, for people. */
  readonly log?: ((line: string) => void) | undefined;
}

/** Walks do not get through it. */
export const OPAQUE = 'asm';
const WITH_COLD_PART: ReadonlySet<string> = new Set(['f', 'g']);
const DEEPEST = 6;

export class SimulatedMachine {
  readonly choices: Choices;
  readonly oracle: Oracle;
  /** Those that live, in no order. */
  readonly alive: SimulatedTask[] = [];
  /** What is written in the target: a later tool knows nothing else. */
  patches: readonly SimulatedPatch[] = [];
  change: SimulatedChange | undefined;
  forced: ReadonlySet<string> = new Set();
  /** What patches have for the library, by patch: for one that has gone, too, until a tool looks. */
  readonly parts = new Map<string, SimulatedPart>();
  readonly entries = new Map<string, SimulatedEntry>();
  /** `coming`, `going`: the task that loads or unloads it waits until a tool has looked; nobody runs it. */
  library: 'gone' | 'coming' | 'here' | 'going' = 'gone';
  /** How often it has been loaded. */
  loads = 0;
  /** Redirects may go by the states of tasks. */
  areStatesGiven = false;
  /** A tool lives that looks at what is loaded. */
  isAnswered = false;
  /** It looks at what is about to be unloaded, too. */
  isToldOfLeaving = false;
  /** What a task that passes the barrier gets, undefined for nothing. */
  barrierGives: 'patched' | 'unpatched' | undefined;
  /** A tool lives, and gives new tasks a slot of their own. */
  isWatched = false;
  /**
   * Of a table of states: what a task finds that has no entry, since nobody watched when it was created. One slot stands for
   * all free entries, which have one state.
   */
  readonly freeEntry: SimulatedSlot = { isPatched: false, isState: true };
  /** Entries of tasks that have ended. A task that nobody watched being created may find itself in one. */
  readonly #leftEntries: SimulatedSlot[] = [];
  /** The program winds down: tasks return, and vforked ones end. */
  isCalm = false;
  onEvent: (kind: MachineEvent, task: SimulatedTask, parent?: SimulatedTask) => void = () => {};
  readonly #options: MachineOptions;
  readonly #places = new Map<number, number>();
  /** Of patches that are loaded, by object: how far their callbacks are. */
  readonly #stages = new Map<string, Map<string, CallbackStage>>();
  /** How tasks are created. Where states are in a table, what is to be tried is threads. */
  readonly #ways: readonly ('clone' | 'fork' | 'vfork')[];
  #loader: SimulatedTask | undefined;
  #nextId = 1;
  #turn = 0;

  constructor(options: MachineOptions) {
    this.choices = options.choices;
    this.#options = options;
    this.#ways =
      options.hasStateTable === true
        ? ['clone', 'clone', 'clone', 'clone', 'fork', 'vfork']
        : ['clone', 'fork', 'vfork'];
    this.oracle = new Oracle(this);
    for (const name of FUNCTIONS) this.entries.set(name, { kind: 'fixed', version: undefined });
    for (let i = 0; i < options.tasks; i++) this.#create(undefined, 'clone');
  }

  /** Its last task has ended or executed another program. */
  get isGone(): boolean {
    return this.alive.length === 0;
  }

  /** Of what is there: a patch has versions in an object once it has a part for it. */
  get versions(): VersionStack<SimulatedFunction, SimulatedPatch> {
    const patches = this.patches.map((patch) => {
      const isAll = this.partOf(patch.id) !== undefined;
      const functions = patch.functions.filter(({ name }) => isAll || objectOf(name) === PROGRAM);
      return { ...patch, functions };
    });
    return new VersionStack(patches, (version) => version.name);
  }

  /** What the patch has for the library as it is now loaded. */
  partOf(patch: string): SimulatedPart | undefined {
    const part = this.parts.get(patch);
    return this.library !== 'gone' && part?.load === this.loads ? part : undefined;
  }

  /** Enabled patches that have nothing for the library that is there. */
  get pending(): readonly SimulatedPatch[] {
    if (this.library === 'gone') return [];
    const changes = ({ functions }: SimulatedPatch) =>
      functions.some(({ name }) => objectOf(name) === LIBRARY);
    return this.patches.filter((patch) => changes(patch) && this.partOf(patch.id) === undefined);
  }

  find(id: number): SimulatedTask | undefined {
    const place = this.#places.get(id);
    return place === undefined ? undefined : this.alive[place];
  }

  stageOf(patch: string, object: string): CallbackStage {
    return this.#stages.get(patch)?.get(object) ?? 'none';
  }

  setStage(patch: string, object: string, stage: CallbackStage): void {
    const stages = this.#stages.get(patch);
    if (stages === undefined) this.#stages.set(patch, new Map([[object, stage]]));
    else stages.set(object, stage);
  }

  /** Of patches that are gone, replaced ones above all. */
  dropStages(): void {
    for (const id of this.#stages.keys())
      if (!this.patches.some((patch) => patch.id === id)) this.#stages.delete(id);
  }

  /** Sets the states of all entries of a table, those of tasks to come too. */
  setTable(isPatched: boolean): void {
    for (const entry of [this.freeEntry, ...this.#leftEntries]) entry.isPatched = isPatched;
  }

  /** Who has the state of the task: a vforked child in a table has its parent's thread pointer. */
  sharersOf(task: SimulatedTask): readonly SimulatedTask[] {
    return task.slot.isState === true ? this.alive.filter(({ slot }) => slot === task.slot) : [task];
  }

  log(line: () => string): void {
    this.#options.log?.(line());
  }

  /** The tool is gone, or has let go: whatever it held goes on. */
  detach(): void {
    this.isWatched = false;
    this.isAnswered = false;
    this.isToldOfLeaving = false;
    this.answer();
    this.onEvent = () => {};
    for (const task of this.alive) task.isHeld = false;
  }

  /** The task that loads the library goes on, and runs it: constructors first. One that unloads it goes on with that. */
  answer(): void {
    this.#loader = undefined;
    if (this.library === 'coming') this.library = 'here';
    else if (this.library === 'going') this.unload();
  }

  /** Lets `instants` pass, in each of which one task does one thing. */
  run(instants: number): void {
    for (let i = 0; i < instants && !this.isGone; i++) {
      // That a transition ends can be asked only of a program in which every task has its turn.
      const task = this.isCalm
        ? (this.alive[this.#turn++ % this.alive.length] as SimulatedTask)
        : this.choices.pick(this.alive);
      if (!task.isHeld && task.vforkChild === undefined && task !== this.#loader) this.#step(task);
    }
  }

  #step(task: SimulatedTask): void {
    if (task.sleepsFor > 0) {
      task.sleepsFor -= 1;
      if (task.sleepsFor === 0) this.onEvent('moved', task);
      return;
    }
    const top = task.stack[task.stack.length - 1];
    if (top?.part === 'entry') {
      // A signal may come here, too: then it has decided, and goes on when its handler returns.
      if (!this.isCalm && this.choices.chance(0.1)) {
        this.#interrupt(task);
        return;
      }
      task.stack[task.stack.length - 1] = frameOf(top.name, 'body', top.version);
      this.log(() => `task ${task.id} enters ${top.name}@${top.version ?? 'original'}`);
      return;
    }
    this.#act(task, top);
    this.oracle.expectTask(task);
  }

  #act(task: SimulatedTask, top: SimulatedFrame | undefined): void {
    const what = this.choices.next();
    if (this.isCalm) {
      if (what < 0.9) this.#return(task);
      else if (task.isVforked) this.#exit(task);
      return;
    }
    if (what < 0.4) this.#return(task);
    else if (what < 0.76) this.#call(task);
    else if (what < 0.82) this.#sleep(task);
    else if (what < 0.86) this.#enterColdPart(task, top);
    else if (what < 0.9) this.#interrupt(task);
    else if (what < 0.92) this.#throw(task);
    else if (this.#options.isSteady === true) return;
    else if (what < 0.96) this.#split(task);
    else if (what < 0.98) this.#exit(task);
    else if (what < 0.985 && this.#options.isOneProcess !== true) this.#exec(task);
    else if (this.#options.hasLibrary === true) this.#toggleLibrary(task);
  }

  /** That nobody is inside of a library that is unloaded is the program's own duty. */
  #toggleLibrary(task: SimulatedTask): void {
    if (this.library === 'gone') this.load(task);
    else if (this.library === 'here' && this.choices.chance(0.4) && !this.alive.some(isInLibrary))
      this.close(task);
  }

  /** `by` waits where a tool wants to know. No task may be inside. */
  close(by: SimulatedTask): void {
    if (!this.isToldOfLeaving) {
      this.unload();
      return;
    }
    this.library = 'going';
    this.#loader = by;
    this.log(() => `task ${by.id} unloads the library, and waits`);
  }

  /** `by` waits where a tool answers. */
  load(by: SimulatedTask): void {
    this.loads += 1;
    this.library = 'coming';
    for (const name of LIBRARY_FUNCTIONS) this.entries.set(name, { kind: 'fixed', version: undefined });
    this.log(() => `task ${by.id} loads the library${this.isAnswered ? ', and waits' : ''}`);
    this.oracle.noteLibrary();
    if (this.isAnswered) this.#loader = by;
    else this.answer();
  }

  /** With what was written into it. */
  unload(): void {
    this.library = 'gone';
    for (const name of LIBRARY_FUNCTIONS) this.entries.delete(name);
    this.log(() => 'the library is unloaded');
    this.oracle.noteLibrary();
  }

  #return(task: SimulatedTask): void {
    if (task.stack.length > task.base) {
      const frame = task.stack.pop();
      this.log(() => `task ${task.id} returns from ${frame?.name}@${frame?.version ?? 'original'}`);
    } else if (task.stack.length === 0) this.#passBarrier(task);
  }

  /** Done by the task itself, whether a tool lives or not (ARCHITECTURE.md, "The barrier"). */
  #passBarrier(task: SimulatedTask): void {
    // In a table it switches at its own entry only.
    if (this.barrierGives === undefined || task.slot === this.freeEntry) return;
    const isPatched = this.barrierGives === 'patched';
    const hadIt = stateOf(task) === isPatched;
    task.slot.isPatched = isPatched;
    if (hadIt) return;
    task.isPatched = isPatched;
    this.log(() => `task ${task.id} passes the barrier and is ${this.barrierGives}`);
    for (const sharer of this.sharersOf(task)) this.oracle.noteSwitched(sharer, isPatched);
    this.onEvent('switched', task);
  }

  #call(task: SimulatedTask): void {
    if (task.stack.length >= DEEPEST) return;
    const name = this.choices.pick(
      this.#options.calls ?? (this.library === 'here' ? ALL_FUNCTIONS : FUNCTIONS),
    );
    const entry = this.entries.get(name);
    if (entry === undefined) return;
    if (entry.kind === 'fixed') task.stack.push(frameOf(name, 'body', entry.version));
    else
      task.stack.push(
        frameOf(name, 'entry', this.#isLedToNew(entry, task) ? entry.patched : entry.unpatched),
      );
    const frame = task.stack[task.stack.length - 1] as SimulatedFrame;
    this.log(() => `task ${task.id} calls ${name}@${frame.version ?? 'original'}`);
    this.oracle.noteCall(task, frame);
  }

  #isLedToNew(entry: Exclude<SimulatedEntry, { kind: 'fixed' }>, task: SimulatedTask): boolean {
    if (entry.kind === 'gated' && entry.gate.gate !== 'choosing') return entry.gate.gate === 'open';
    this.oracle.noteStateRead(task);
    return stateOf(task);
  }

  #sleep(task: SimulatedTask): void {
    task.sleepsFor = this.choices.below(this.#options.longestSleep) + 1;
    task.isUninterruptible = this.choices.chance(0.3);
    this.log(() => `task ${task.id} sleeps${task.isUninterruptible ? ', not to be interrupted' : ''}`);
  }

  /** A jump, no call: the frame stays, its instruction pointer lies in another symbol. */
  #enterColdPart(task: SimulatedTask, top: SimulatedFrame | undefined): void {
    if (top?.part !== 'body' || !WITH_COLD_PART.has(top.name)) return;
    task.stack[task.stack.length - 1] = frameOf(top.name, 'cold', top.version);
    this.log(() => `task ${task.id} goes to ${top.name}.cold`);
  }

  /** A signal comes: behind its frame, the interrupted function stands at any instruction. */
  #interrupt(task: SimulatedTask): void {
    if (task.stack.length === 0 || task.stack.length >= DEEPEST) return;
    task.stack.push(frameOf('signal', 'exception', undefined));
    this.log(() => `task ${task.id} takes a signal`);
  }

  /** An exception or longjmp: several frames at once. */
  #throw(task: SimulatedTask): void {
    const length = task.base + this.choices.below(task.stack.length - task.base + 1);
    task.stack.length = Math.min(task.stack.length, length);
    // What is caught is caught behind a call, never in an entry.
    const top = task.stack[task.stack.length - 1];
    if (top?.part === 'entry' && task.stack.length > task.base) task.stack.pop();
    this.log(() => `task ${task.id} throws, ${task.stack.length} frames are left`);
  }

  #split(parent: SimulatedTask): void {
    if (this.alive.length >= this.#options.mostTasks) return;
    const how = this.#options.isOneProcess === true ? 'clone' : this.choices.pick(this.#ways);
    // Should its parent be ended by a thread's exec, two processes would run on one stack, which no program survives.
    if (parent.isVforked && how === 'vfork' && parent.slot.isState === true) return;
    const child = this.#create(parent, how);
    if (how === 'vfork') parent.vforkChild = child;
    this.log(() => `task ${parent.id} creates task ${child.id} (${how})`);
    this.onEvent('created', child, parent);
  }

  /** A thread starts with an empty stack, a process with a copy of its parent's. All inherit the state (rule 2). */
  #create(parent: SimulatedTask | undefined, how: 'clone' | 'fork' | 'vfork'): SimulatedTask {
    const id = this.#nextId++;
    const inherited = parent !== undefined && stateOf(parent);
    const slot = this.#slotForNew(parent, how, inherited);
    const isPatched = slot.isState === true ? slot.isPatched : inherited;
    const task: SimulatedTask = {
      id,
      process: how === 'clone' ? (parent?.process ?? 0) : id,
      stack: how === 'clone' ? [] : [...(parent?.stack ?? [])],
      isPatched,
      slot,
      sleepsFor: 0,
      isUninterruptible: false,
      isHeld: false,
      vforkChild: undefined,
      isVforked: how === 'vfork',
      base: how === 'vfork' ? (parent?.stack.length ?? 0) : 0,
      ruled: isPatched,
      side: how === 'clone' ? 'none' : (parent?.side ?? 'none'),
    };
    this.#places.set(id, this.alive.length);
    this.alive.push(task);
    return task;
  }

  #slotForNew(
    parent: SimulatedTask | undefined,
    how: 'clone' | 'fork' | 'vfork',
    isPatched: boolean,
  ): SimulatedSlot {
    // A forked process has a copy of it.
    const isShared = parent !== undefined && how !== 'fork' && !this.isWatched;
    if (this.#options.hasStateTable !== true) return isShared ? parent.slot : { isPatched };
    if (parent !== undefined && how === 'vfork') return parent.slot;
    if (!isShared) return { isPatched, isState: true };
    return this.choices.chance(0.5) ? (this.#leftEntries.pop() ?? this.freeEntry) : this.freeEntry;
  }

  #exit(task: SimulatedTask): void {
    this.log(() => `task ${task.id} ends`);
    this.#remove(task);
  }

  /** Another program: all other threads of the process end, and the task is none of this program's any more. */
  #exec(task: SimulatedTask): void {
    this.log(() => `task ${task.id} executes another program`);
    for (const other of [...this.alive]) if (other.process === task.process) this.#remove(other);
  }

  #remove(task: SimulatedTask): void {
    const place = this.#places.get(task.id);
    if (place === undefined) return;
    const last = this.alive.pop() as SimulatedTask;
    if (last !== task) {
      this.alive[place] = last;
      this.#places.set(last.id, place);
    }
    this.#places.delete(task.id);
    if (task.slot.isState === true && task.slot !== this.freeEntry && this.sharersOf(task).length === 0)
      this.#leftEntries.push(task.slot);
    if (task === this.#loader) this.answer();
    if (task.isVforked)
      for (const other of this.alive) if (other.vforkChild === task) other.vforkChild = undefined;
    this.onEvent('exited', task);
  }
}

function isInLibrary(task: SimulatedTask): boolean {
  return task.stack.some(({ name }) => objectOf(name) === LIBRARY);
}
