import type { Damage } from './compile.js';

/** An engine or a target that breaks a rule on purpose. The simulation must notice each (docs/simulation.md). */
export interface Mutant extends Damage {
  readonly name: string;
  /** The rule that it breaks, as the documentation says it. */
  readonly breaks: string;
}

const ENGINE = 'engine/transition.ts';
const TARGET = 'targets/simulated/simulated-transition.ts';
const CALLBACKS = 'engine/callbacks.ts';
const PROGRAM = 'targets/simulated/machine.ts';
const TASK = 'targets/simulated/task.ts';
const OBJECTS = 'engine/objects.ts';
const LIBRARY = 'targets/simulated/simulated-objects.ts';

export const MUTANTS: readonly Mutant[] = [
  {
    name: 'never-checks',
    breaks: 'a task switches only behind a stack check',
    file: ENGINE,
    find: 'await this.#target.trySwitch(task.id, this.#to, this.#check);\n    switch',
    replace: "await this.#target.trySwitch(task.id, this.#to, 'unchecked');\n    switch",
  },
  {
    name: 'finishes-without-a-fresh-list',
    breaks: 'the transition ends when a fresh list holds no task of the other state',
    file: ENGINE,
    find: 'async #isSettled(): Promise<boolean> {\n    await this.#relist();',
    replace: 'async #isSettled(): Promise<boolean> {',
  },
  {
    name: 'reverses-without-telling',
    breaks: 'which functions leave is the other set after a reverse',
    file: ENGINE,
    find: '    await this.#target.reverse(this.#direction);\n',
    replace: '',
  },
  {
    name: 'leaves-a-held-task',
    breaks: 'a task that was said to have moved is tried at once, also when nothing is left to switch',
    file: ENGINE,
    find: '      await this.#target.trySwitch(id, this.#to, this.#check);\n    } else if',
    replace: '    } else if',
  },
  {
    name: 'never-tries-again',
    breaks: 'a refused task is retried with back-off',
    file: ENGINE,
    find: '    this.#pending.set(task, this.#now() + task.delayMs);',
    replace: '    this.#pending.set(task, Number.POSITIVE_INFINITY);',
  },
  {
    name: 'runs-pre-patch-behind-the-install',
    breaks: 'a pre-patch callback runs before anything is changed',
    file: ENGINE,
    find: `    await this.#passMoment(this.#direction === 'patch' ? 'enable' : 'disable');
    await this.#target.install(this.#direction);`,
    replace: `    await this.#target.install(this.#direction);
    await this.#passMoment(this.#direction === 'patch' ? 'enable' : 'disable');`,
  },
  {
    name: 'runs-post-callbacks-before-all-have-switched',
    breaks:
      'a post-patch callback runs when all tasks have the new version, a post-unpatch one when none has',
    file: ENGINE,
    find: '    do {\n      if (!(await this.#settle()))',
    replace: `    await this.#passMoment(this.#direction === 'patch' ? 'enabled' : 'disabled');
    do {
      if (!(await this.#settle()))`,
  },
  {
    name: 'runs-pre-patch-again-when-resumed',
    breaks: 'a callback that has had its turn has none again when a later run goes on',
    file: CALLBACKS,
    find: "return stage === 'none' ? 'prePatch' : undefined;",
    replace: "return 'prePatch';",
  },
  {
    name: 'runs-pre-unpatch-of-what-was-never-complete',
    breaks: 'a patch that is turned around before it was complete has no pre-unpatch callback run',
    file: CALLBACKS,
    find: "return stage === 'postPatched' ? 'preUnpatch' : undefined;",
    replace: "return stage === 'none' ? undefined : 'preUnpatch';",
  },
  {
    name: 'leaves-what-pre-patch-did',
    breaks: 'whatever a pre-patch callback did, the post-unpatch one undoes',
    file: CALLBACKS,
    find: "return isBetween ? 'postUnpatch' : undefined;",
    replace: "return stage === 'preUnpatched' ? 'postUnpatch' : undefined;",
  },
  {
    name: 'forgets-cold-parts',
    breaks: '`f.cold` belongs to the check of `f`',
    file: TARGET,
    find: 'walk.frames.findIndex(({ name, version }) => {',
    replace: "walk.frames.findIndex(({ name, part, version }) => {\n      if (part === 'cold') return false;",
  },
  {
    name: 'forgets-who-has-decided',
    breaks: 'a task between the reading of its state and the jump behind it has decided',
    file: TARGET,
    find: 'walk.frames.findIndex(({ name, version }) => {',
    replace:
      "walk.frames.findIndex(({ name, part, version }) => {\n      if (part === 'entry') return false;",
  },
  {
    name: 'forgets-who-has-decided-below-a-signal',
    breaks: 'also when a signal has interrupted it there',
    file: TARGET,
    find: 'walk.frames.findIndex(({ name, version }) => {',
    replace:
      "walk.frames.findIndex(({ name, part, version }) => {\n      if (part === 'entry' && task.stack.at(-1)?.part !== 'entry') return false;",
  },
  {
    name: 'looks-at-the-innermost-frame',
    breaks: 'no frame of the stack may be of what leaves',
    file: TARGET,
    find: '    const frame = walk.frames[at];',
    replace: '    const frame = at > 0 ? undefined : walk.frames[at];',
  },
  {
    name: 'flips-before-the-check',
    breaks: 'the state is set behind the check',
    file: TARGET,
    find: "    const reason = check === 'checked' ? this.#refusal(task) : undefined;\n    if (reason === undefined) this.#switch(task, to);\n    this.#release",
    replace:
      "    setState(task, to === 'patched');\n    this.#step();\n    const reason = check === 'checked' ? this.#refusal(task) : undefined;\n    if (reason !== undefined) setState(task, to !== 'patched');\n    else this.#switch(task, to);\n    this.#release",
  },
  {
    name: 'checks-in-one-stop-and-switches-in-the-next',
    breaks: 'the state is set in the stop in which the stack was checked',
    file: TARGET,
    find: '    if (reason === undefined) this.#switch(task, to);\n    this.#release',
    replace: '    this.#step();\n    if (reason === undefined) this.#switch(task, to);\n    this.#release',
  },
  {
    name: 'takes-an-unreliable-walk',
    breaks: 'a walk that ends early is unreliable, whatever it found',
    file: TARGET,
    find: 'if (frame.name === OPAQUE) return',
    replace: 'if (frame.name === OPAQUE) break;\n      if (frame.name === undefined) return',
  },
  {
    name: 'ends-at-an-exception',
    breaks: 'the walk goes on behind an exception frame',
    file: TARGET,
    find: "      if (frame.part !== 'exception') frames.push(frame);",
    replace: "      if (frame.part === 'exception') break;\n      frames.push(frame);",
  },
  {
    name: 'checks-the-wrong-direction',
    breaks: 'when unpatching, the version that is removed must be left',
    file: TARGET,
    find: "return version === (this.#direction === 'patch' ? sides.old : sides.new);",
    replace: 'return version === sides.old;',
  },
  {
    name: 'replaces-and-forgets-the-older',
    breaks: 'a cumulative patch also takes away what only the older ones changed',
    file: LIBRARY,
    find: '  if (patch.replaces) for (const older of patches) for (const fn of older.functions) names.add(fn.name);\n',
    replace: '',
  },
  {
    name: 'begins-anew-when-resumed',
    breaks: 'a later run keeps the states that it finds',
    file: TARGET,
    find: "if (before?.phase !== 'running') {",
    replace: "if (before?.phase !== 'running' || before.direction !== direction) {",
  },
  {
    name: 'redirects-before-states',
    breaks: 'every task has a state before the first redirect reads it',
    file: TARGET,
    find: '      for (const task of machine.alive) setState(task, runsNew);\n',
    replace: '',
  },
  {
    name: 'arms-the-barrier-first',
    breaks: 'the barrier switches nobody before every redirect is written',
    file: TARGET,
    find: '    this.#updateChanged();\n    this.#log(',
    replace: '    this.#updateChanged();\n    this.#armBarrier();\n    this.#log(',
  },
  {
    name: 'keeps-the-barrier-of-the-other-way',
    breaks: 'the barrier turns around with the transition',
    file: TARGET,
    find: "this.#machine.barrierGives = this.#direction === 'patch' ? 'patched' : 'unpatched';",
    replace: "this.#machine.barrierGives ??= this.#direction === 'patch' ? 'patched' : 'unpatched';",
  },
  {
    name: 'leaves-the-barrier',
    breaks: 'behind a transition nothing switches tasks',
    file: TARGET,
    find: '    machine.barrierGives = undefined;\n',
    replace: '',
  },
  {
    name: 'forks-unpatched',
    breaks: 'a new task inherits the state of its parent',
    file: PROGRAM,
    find: 'parent !== undefined && stateOf(parent);',
    replace: 'false;',
  },
  {
    name: 'shares-slots-while-watched',
    breaks: 'a new task gets a slot of its own from who watches',
    file: PROGRAM,
    find: " && how !== 'fork' && !this.isWatched;",
    replace: " && how === 'clone';",
  },
  {
    name: 'vforks-into-the-slot-of-the-parent',
    breaks: 'what a vforked child does at the barrier says nothing of its parent',
    file: PROGRAM,
    find: " && how !== 'fork' && !this.isWatched;",
    replace: " && (how === 'vfork' || (how === 'clone' && !this.isWatched));",
  },
  {
    name: 'leaves-slots-shared-when-resumed',
    breaks: 'a later run gives each task a slot of its own',
    file: TARGET,
    find: 'if (taken.has(task.slot)) task.slot = { isPatched: stateOf(task) };',
    replace: '',
  },
  {
    name: 'believes-slots-that-were-shared',
    breaks: 'what a slot says counts when its task was its only one',
    file: TARGET,
    find: 'for (const task of alive) task.slot.isPatched = stateOf(task);',
    replace: '',
  },
  {
    name: 'switches-who-shares-the-slot',
    breaks: 'a task that passes the barrier switches no other',
    file: TASK,
    find: 'task.slot.isState === true ? task.slot.isPatched : task.isPatched',
    replace: 'task.slot.isPatched',
  },
  {
    name: 'begins-with-what-the-table-held',
    breaks: 'before a transition begins, a table of states gives who is not in it what all tasks have',
    file: TARGET,
    find: '      if (before === undefined) machine.setTable(runsNew);\n',
    replace: '',
  },
  {
    name: 'ends-with-what-the-table-held',
    breaks: 'before the first entry becomes final, a table gives who is not in it what all have switched to',
    file: TARGET,
    find: "    machine.setTable(direction === 'patch');\n",
    replace: '',
  },
  {
    name: 'runs-callbacks-with-what-the-table-held',
    breaks: 'behind a post callback, a table gives who is not in it what the callback could count on',
    file: TARGET,
    find: "if (stage === 'postPatched' || stage === 'none') this.",
    replace: "if (stage === 'prePatched' && stage !== this.#direction) this.",
  },
  {
    name: 'forgets-entries-of-ended-tasks',
    breaks: 'a new task may find itself in the entry of one that has ended',
    file: PROGRAM,
    find: 'of [this.freeEntry, ...this.#leftEntries])',
    replace: 'of [this.freeEntry])',
  },
  {
    name: 'switches-who-is-in-no-table',
    breaks: 'a task that passes the barrier switches at its own entry, and no other',
    file: PROGRAM,
    find: '|| task.slot === this.freeEntry',
    replace: '',
  },
  {
    name: 'leaves-pre-patch-out-when-a-removal-is-turned-around',
    breaks: 'a removal that is turned around behind its last callback begins anew with the pre-patch one',
    file: ENGINE,
    find: "    await this.#passMoment(this.#direction === 'patch' ? 'disable' : 'enable');\n    this.#direction =",
    replace: "    if (this.#direction === 'patch') await this.#passMoment('disable');\n    this.#direction =",
  },
  {
    name: 'comes-final-in-mid-transition',
    breaks: 'an object that comes in mid-transition is of the version of each task',
    file: OBJECTS,
    find: "if (transition.phase === 'running') return 'choosing';",
    replace: "if (transition.phase === 'running') return 'direct';",
  },
  {
    name: 'comes-choosing-when-no-state-counts',
    breaks: 'an object that comes before or behind the time in which states count does not choose by them',
    file: OBJECTS,
    find: "return haveNew ? 'direct' : 'below';",
    replace: "return haveNew ? 'choosing' : 'choosing';",
  },
  {
    name: 'brings-what-is-being-replaced',
    breaks: 'what a cumulative patch is about to take away comes to nothing any more',
    file: OBJECTS,
    find: 'transition?.replaces !== true || id === transition.patchId',
    replace: 'id !== undefined',
  },
  {
    name: 'brings-the-newest-first',
    breaks: 'patches come to an object in the order in which they were enabled',
    file: LIBRARY,
    find: 'planArrival(machine.pending, LIBRARY, transitionOf(machine))',
    replace: 'planArrival(machine.pending.toReversed(), LIBRARY, transitionOf(machine))',
  },
  {
    name: 'goes-on-behind-a-refusal',
    breaks: 'behind a patch that is refused, no later one comes to the object',
    file: LIBRARY,
    find: '        this.settle();\n        break;',
    replace: '        this.settle();',
  },
  {
    name: 'comes-in-spite-of-a-veto',
    breaks: 'a veto refuses the object, and keeps the patch',
    file: LIBRARY,
    find: "if (error instanceof LivegraftError && error.code === 'callback-veto') machine.parts.delete(patch.id);\n      throw error;",
    replace: '',
  },
  {
    name: 'runs-before-all-is-written',
    breaks: 'the task that loads an object waits until its entries are written',
    file: PROGRAM,
    find: "this.library === 'here' ? ALL_FUNCTIONS",
    replace: "this.library !== 'gone' ? ALL_FUNCTIONS",
  },
  {
    name: 'opens-the-gate-first',
    breaks: 'entries of an object that comes lead nowhere new before all are written',
    file: LIBRARY,
    find: "state: 'loaded', gate: 'shut' }",
    replace: "state: 'loaded', gate: 'open' }",
  },
  {
    name: 'writes-without-a-gate',
    breaks: 'when a tool has died in an arrival, tasks meet all or nothing of the patch in the object',
    file: LIBRARY,
    find: "{ kind: 'gated', gate: part, patched: to, unpatched: old }",
    replace: "{ kind: 'fixed', version: to }",
  },
  {
    name: 'keeps-a-half-done-arrival',
    breaks: 'a later run takes back an arrival whose gate has not been opened',
    file: OBJECTS,
    find: "return mayBeShut && transition.phase !== 'running' ? 'keep' : 'takeBack';",
    replace: "return mayBeShut && transition.phase !== 'running' ? 'keep' : 'keep';",
  },
  {
    name: 'takes-back-an-arrival-that-is-through',
    breaks: 'a later run completes an arrival whose gate has been opened',
    file: OBJECTS,
    find: "return isIn ? 'keep' : 'complete';",
    replace: "return isIn ? 'keep' : 'takeBack';",
  },
  {
    name: 'knows-an-object-by-its-name',
    breaks: 'an object that is loaded again is another one',
    file: PROGRAM,
    find: ' && part?.load === this.loads ? part',
    replace: ' ? part',
  },
  {
    name: 'lets-go-without-callbacks',
    breaks: 'an object that goes has what its callbacks did undone',
    file: OBJECTS,
    find: "['disable', 'disabled']",
    replace: "['disabled']",
  },
  {
    name: 'keeps-the-callbacks-of-what-has-gone',
    breaks: 'the callbacks of an object that comes again begin anew',
    file: LIBRARY,
    find: "    machine.setStage(patch.id, LIBRARY, 'none');\n",
    replace: '',
  },
];
