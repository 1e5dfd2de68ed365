import type { TransitionTarget } from '../src/engine/target.js';
import { type Clock, runTransition, type TransitionOptions } from '../src/engine/transition.js';
import { Choices } from '../src/targets/simulated/choices.js';
import { type MachineOptions, SimulatedMachine } from '../src/targets/simulated/machine.js';
import { SimulatedTransition } from '../src/targets/simulated/simulated-transition.js';
import { simulate } from '../src/targets/simulated/simulation.js';
import { measureLive } from './engine-live.js';
import { medianOf, publish } from './support.js';

/**
 * `npm run -s bench:engine -- --json`: transitions of 10 to 10,000 simulated tasks that call, return and sleep meanwhile, a tenth
 * of the walks unreliable. `engineMicrosecondsPerTask`: the engine alone, given the same answers once more without the program;
 * `microsecondsPerTask`: with the target's side of each call, but without what the simulated program does meanwhile, nor its
 * oracle's passes over all tasks. Neither may grow with the number of tasks; the slowest of many tasks is slower than the slowest
 * of few, so that `simulatedMs` does. `churn`: how many tasks were created or ended meanwhile, for each that there is; the
 * engine hears of each. `schedules`: whole ones of docs/simulation.md, on one thread.
 * `live` rows: see `engine-live.ts`. `--live` and `--simulated` take one of the two alone.
 */
const PATCH = {
  id: 'fix',
  replaces: false,
  functions: ['f', 'g'].map((name) => ({ name, patch: 'fix' })),
};
const SIZES = [10, 100, 1000, 10_000];
const runsOf = (tasks: number) => (tasks < 10_000 ? 15 : 3);

/** What a target answered, and the time by its clock behind each answer. */
interface Answer {
  readonly value: unknown;
  readonly nowMs: number;
}

const CALLS = [
  'install',
  'tasks',
  'trySwitch',
  'trySwitchAll',
  'watchTask',
  'waitForEvents',
  'reverse',
  'finish',
] as const;

/** A target all of whose calls are answered by `answer`. */
function answering(answer: (call: (typeof CALLS)[number], args: unknown[]) => unknown): TransitionTarget {
  const calls = CALLS.map((call) => [call, (...args: unknown[]) => answer(call, args)]);
  return { name: 'simulated', ...Object.fromEntries(calls) };
}

/** The same target, whose answers are noted. */
function recorded(target: SimulatedTransition): { target: TransitionTarget; answers: readonly Answer[] } {
  const answers: Answer[] = [];
  const noting = answering((call, args) => {
    const value = (target[call] as (...args: unknown[]) => unknown).apply(target, args);
    answers.push({ value, nowMs: target.nowMs });
    return value;
  });
  return { target: noting, answers };
}

/**
 * How long the engine takes for a transition whose answers are there already. Beside a simulated program it would take
 * longer: that sweeps the processor's caches between any two calls, the more so the more tasks it has.
 */
async function replay(answers: readonly Answer[]): Promise<number> {
  let [used, nowMs] = [0, 0];
  const target = answering(() => {
    const answer = answers[used++];
    if (answer === undefined) throw new Error('the engine asks for more than it did before');
    nowMs = answer.nowMs;
    return answer.value;
  });
  const start = performance.now();
  await runTransition(target, transitionOptions({ nowMs: () => nowMs }));
  const tookMs = performance.now() - start;
  if (used !== answers.length)
    throw new Error(`the engine asked ${used} times, and ${answers.length} before`);
  return tookMs;
}

function transitionOptions(clock: Clock): TransitionOptions {
  return { direction: 'patch', model: 'hybrid', timeoutMs: 60_000, clock };
}

/** Knows how long the program itself ran, and its oracle looked at all of it: that is no work of the engine's. */
class TimedMachine extends SimulatedMachine {
  ranMs = 0;

  constructor(options: MachineOptions) {
    super(options);
    const { oracle } = this;
    const expectAll = oracle.expectAll.bind(oracle);
    oracle.expectAll = () => this.#timed(expectAll);
  }

  override run(instants: number): void {
    this.#timed(() => super.run(instants));
  }

  #timed(work: () => void): void {
    const start = performance.now();
    work();
    this.ranMs += performance.now() - start;
  }
}

interface Measured {
  readonly engineMs: number;
  readonly wallMs: number;
  readonly tasks: number;
  readonly attempts: number;
  readonly churn: number;
  readonly simulatedMs: number;
}

async function transition(tasks: number, seed: number, isSteady: boolean): Promise<Measured> {
  const machine = new TimedMachine({
    choices: Choices.ofSeed(seed),
    tasks,
    longestSleep: 10,
    isOneProcess: true,
    isSteady,
    mostTasks: tasks + 8,
  });
  machine.run(tasks * 20);
  machine.ranMs = 0;
  const target = new SimulatedTransition({
    machine,
    patch: PATCH,
    deathChance: 0,
    unreliableChance: 0.1,
    hasBarrier: false,
    // Each task does about the same in a millisecond, however many there are.
    instantsPerMs: tasks,
  });
  let attempts = 0;
  let churn = 0;
  const side = recorded(target);
  const start = performance.now();
  const result = await runTransition(side.target, {
    ...transitionOptions({ nowMs: () => target.nowMs }),
    onEvent: (event) => {
      if (event.kind === 'taskSwitched' || event.kind === 'taskWaiting') attempts += 1;
      if (event.kind === 'taskCreated' || event.kind === 'taskExited') churn += 1;
    },
  });
  const tookMs = performance.now() - start;
  const wallMs = tookMs - machine.ranMs;
  if (result.kind !== 'complete') throw new Error(`${tasks} tasks: not complete in a minute`);
  const engineMs = await replay(side.answers);
  return { engineMs, wallMs, tasks: result.tasks, attempts, churn, simulatedMs: result.durationMs };
}

const SCHEDULES = 10_000;

async function measureSimulated(): Promise<object[]> {
  const rows: object[] = [];
  // The just-in-time compiler has seen everything before the first row.
  for (let seed = 1; seed <= 100; seed++) await transition(30, seed, seed % 2 === 0);
  for (const [size, isSteady] of [...SIZES.map((size) => [size, true] as const), [1000, false] as const]) {
    const runs: Measured[] = [];
    for (let seed = 1; seed <= runsOf(size); seed++) runs.push(await transition(size, seed, isSteady));
    const of = (what: (run: Measured) => number) => medianOf(runs.map(what));
    rows.push({
      what: 'transition',
      tasks: size,
      runs: runs.length,
      attemptsPerTask: of((run) => run.attempts / run.tasks),
      churn: of((run) => run.churn / run.tasks),
      simulatedMs: of((run) => run.simulatedMs),
      wallMs: of((run) => run.wallMs),
      engineMicrosecondsPerTask: of((run) => (run.engineMs * 1000) / run.tasks),
      microsecondsPerTask: of((run) => (run.wallMs * 1000) / run.tasks),
    });
  }

  const start = performance.now();
  const { failed } = await simulate({ firstSeed: 1, schedules: SCHEDULES });
  const wallMs = performance.now() - start;
  if (failed !== undefined) throw new Error(`seed ${failed.seed}: ${failed.violation}`);
  rows.push({
    what: 'schedules',
    runs: SCHEDULES,
    schedulesPerSecond: Math.round((SCHEDULES / wallMs) * 1000),
  });
  return rows;
}

const isWanted = (part: string, other: string) =>
  process.argv.includes(part) || !process.argv.includes(other);
const simulated = isWanted('--simulated', '--live') ? await measureSimulated() : [];
const live = isWanted('--live', '--simulated') ? await measureLive() : [];
publish('bench:engine', [...simulated, ...live]);
