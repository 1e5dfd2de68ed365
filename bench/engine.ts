import { runTransition } from '../src/engine/transition.js';
import { Choices } from '../src/targets/simulated/choices.js';
import { SimulatedMachine } from '../src/targets/simulated/machine.js';
import { SimulatedTransition } from '../src/targets/simulated/simulated-transition.js';
import { simulate } from '../src/targets/simulated/simulation.js';
import { medianOf, publish } from './support.js';

/**
 * `npm run -s bench:engine -- --json`: transitions of 10 to 10,000 simulated tasks that call, return, sleep, are created
 * and end meanwhile, a tenth of the walks unreliable. Counted is the engine with the target's side of each call; what the
 * simulated program itself does meanwhile is not. `microsecondsPerTask` is what must not grow; the slowest of many tasks
 * is slower than the slowest of few, so that `simulatedMs` does. `schedules`: whole ones of docs/simulation.md, on one thread.
 */
const PATCH = {
  id: 'fix',
  replaces: false,
  functions: ['f', 'g'].map((name) => ({ name, patch: 'fix' })),
};
const SIZES = [10, 100, 1000, 10_000];
const runsOf = (tasks: number) => (tasks < 10_000 ? 15 : 3);

/** Knows how long the program itself ran: that is no work of the engine's. */
class TimedMachine extends SimulatedMachine {
  ranMs = 0;

  override run(instants: number): void {
    const start = performance.now();
    super.run(instants);
    this.ranMs += performance.now() - start;
  }
}

interface Measured {
  readonly wallMs: number;
  readonly tasks: number;
  readonly attempts: number;
  readonly simulatedMs: number;
}

async function transition(tasks: number, seed: number): Promise<Measured> {
  const machine = new TimedMachine({
    choices: Choices.ofSeed(seed),
    tasks,
    longestSleep: 10,
    isOneProcess: true,
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
  const start = performance.now();
  const result = await runTransition(target, {
    direction: 'patch',
    model: 'hybrid',
    timeoutMs: 60_000,
    clock: { nowMs: () => target.nowMs },
    onEvent: (event) => {
      if (event.kind === 'taskSwitched' || event.kind === 'taskWaiting') attempts += 1;
    },
  });
  const wallMs = performance.now() - start - machine.ranMs;
  if (result.kind !== 'complete') throw new Error(`${tasks} tasks: not complete in a minute`);
  return { wallMs, tasks: result.tasks, attempts, simulatedMs: result.durationMs };
}

const rows: object[] = [];
// The just-in-time compiler has seen everything before the first row.
for (let seed = 1; seed <= 100; seed++) await transition(30, seed);
for (const size of SIZES) {
  const runs: Measured[] = [];
  for (let seed = 1; seed <= runsOf(size); seed++) runs.push(await transition(size, seed));
  const wallMs = medianOf(runs.map((run) => run.wallMs));
  rows.push({
    what: 'transition',
    tasks: size,
    runs: runs.length,
    attemptsPerTask: medianOf(runs.map((run) => run.attempts / run.tasks)),
    simulatedMs: medianOf(runs.map((run) => run.simulatedMs)),
    wallMs,
    microsecondsPerTask: medianOf(runs.map((run) => (run.wallMs * 1000) / run.tasks)),
  });
}

const SCHEDULES = 10_000;
const start = performance.now();
const { failed } = await simulate({ firstSeed: 1, schedules: SCHEDULES });
const wallMs = performance.now() - start;
if (failed !== undefined) throw new Error(`seed ${failed.seed}: ${failed.violation}`);
rows.push({
  what: 'schedules',
  runs: SCHEDULES,
  schedulesPerSecond: Math.round((SCHEDULES / wallMs) * 1000),
});
publish('bench:engine', rows);
