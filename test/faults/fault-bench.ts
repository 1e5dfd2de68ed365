import { readFileSync } from 'node:fs';
import { Choices } from '../../src/targets/simulated/choices.js';
import {
  compilePatch,
  compilePatchOf,
  type Fault,
  hurtLivegraft,
  type LiveTarget,
  livegraft,
  pause,
  type Run,
  snapshot,
  startLivegraft,
  startTarget,
} from '../support/live.js';

/**
 * livegraft is killed on a real process that answers requests: at a step of its own ({@link killAtSteps}), or at a random
 * instant ({@link killAtRandom}). After each kill the process must go on, must count no mix of versions and no lost
 * request, and the next livegraft must bring it to either side. What does not hold is thrown.
 */
export const OPERATIONS = ['apply', 'revert', 'replace', 'reverse', 'turn'] as const;
export type Operation = (typeof OPERATIONS)[number];

/** Answers to a command that a killed one had carried out. */
const NOTHING_LEFT = ['already-applied', 'no-such-patch'];
/** Of another patch: its revert was killed, and has to come first. */
const OTHERS_FIRST = 'transition-in-progress';
/** Answers of one that found no thread to work with in time, on a machine that is busy; nothing was changed. */
const TRY_AGAIN = ['no-thread-to-borrow', 'thread-stuck', 'install-timeout'];
/** On a machine whose processors others take the target gets to little. */
const LONGEST_WORK_MS = 120_000;
const REGISTRY = 'memfd:livegraft:registry';

interface Patches {
  readonly program: string;
  /** To version 2, and to version 3. */
  readonly second: string;
  readonly third: string;
}

function build(): Patches {
  const { program, patch } = compilePatch('hostile.c');
  return { program, second: patch, third: compilePatchOf('hostile.c', 'third', ['-DVERSION=3']) };
}

function check(isTrue: boolean, what: string): asserts isTrue {
  if (!isTrue) throw new Error(what);
}

/** What the target itself counts, as it prints it. */
export class Account {
  readonly #target: LiveTarget;
  #done = 0;

  constructor(target: LiveTarget) {
    this.#target = target;
  }

  /** Waits until more work has been done than when it was last asked; returns the version. */
  async expectWorks(more = 1): Promise<number> {
    const until = performance.now() + LONGEST_WORK_MS;
    while (performance.now() < until && this.#target.isAlive()) {
      const line = this.#target.output().trimEnd().split('\n').at(-1) ?? '';
      const found = /^(\d) mixes (\d+) lost (\d+) done (\d+)$/.exec(line);
      if (found !== null && Number(found[4]) >= this.#done + more) {
        check(found[2] === '0' && found[3] === '0', line);
        this.#done = Number(found[4]);
        return Number(found[1]);
      }
      await pause(10);
    }
    throw new Error(`it does not go on: ${this.#target.output().slice(-400)}`);
  }
}

/** One target, and the commands that are given to it. */
class Bench {
  readonly target: LiveTarget;
  readonly account: Account;
  readonly #patches: Patches;
  readonly #code: string;

  constructor(target: LiveTarget, patches: Patches) {
    this.target = target;
    this.account = new Account(target);
    this.#patches = patches;
    this.#code = snapshot(target.pid).code;
  }

  command(operation: Operation): readonly string[] {
    const pid = ['--pid', String(this.target.pid)];
    switch (operation) {
      case 'apply':
        return ['apply', ...pid, this.#patches.second];
      case 'turn':
        return ['apply', ...pid, '--timeout', '5', this.#patches.second];
      case 'replace':
        return ['apply', ...pid, '--replace', this.#patches.third];
      case 'revert':
      case 'reverse':
        return ['revert', ...pid];
    }
  }

  /** Brings the target from the original to where an operation begins. */
  prepare(operation: Operation): void {
    if (operation === 'apply' || operation === 'turn') return;
    const isHeld = operation === 'reverse';
    const run = runUntilAnswered(...this.command('apply'), ...(isHeld ? ['--timeout', '0.1'] : []));
    check(run.code === (isHeld ? 3 : 0), `before ${operation}: ${said(run)}`);
  }

  /** Goes on with what was killed; that there was nothing left to do is no failure. */
  complete(operation: Operation): void {
    const run = runUntilAnswered(...this.command(operation));
    const { code } = run.lines.at(-1) ?? {};
    if (code === OTHERS_FIRST) return;
    check(run.code === 0 || NOTHING_LEFT.some((answer) => answer === code), said(run));
    const { patches, transition } = this.#status();
    check(transition === null, `it is complete, and has a transition: ${JSON.stringify(transition)}`);
    const left = operation === 'revert' || operation === 'reverse' ? 0 : 1;
    check(patches.length === left, `${patches.length} patches behind ${operation}`);
  }

  expectTransition(isWanted: boolean): void {
    const { transition } = this.#status();
    check((transition !== null) === isWanted, `what was said does not fit: ${JSON.stringify(transition)}`);
  }

  /** Back to the original, through whatever is there. */
  toOriginal(): void {
    for (let i = 0; i < 4; i++) {
      // Without a registry there is nothing that could choose.
      if (!readFileSync(`/proc/${this.target.pid}/maps`, 'utf8').includes(REGISTRY)) return;
      const run = runUntilAnswered('revert', '--pid', String(this.target.pid));
      if (run.lines.at(-1)?.code === 'no-such-patch') return;
      check(run.code === 0, said(run));
    }
    throw new Error(`patches are left: ${JSON.stringify(this.#status())}`);
  }

  /** What a killed run mapped and never registered goes with the next whole one. */
  async expectAsBefore(isHeld: boolean): Promise<void> {
    if (isHeld) this.prepare('reverse');
    else this.prepare('revert');
    this.toOriginal();
    // Its own mappings come and go with its threads.
    const now = snapshot(this.target.pid);
    check(!now.maps.includes('memfd:livegraft'), `something of ours is left: ${now.maps}`);
    check(now.code === this.#code, 'other code');
    check((await this.account.expectWorks()) === 1, 'it is not the original');
  }

  #status(): { readonly patches: readonly unknown[]; readonly transition: unknown } {
    const run = runUntilAnswered('status', '--pid', String(this.target.pid));
    check(run.code === 0, said(run));
    const [line] = run.lines as [{ processes: [{ patches: readonly unknown[]; transition: unknown }] }];
    return line.processes[0];
  }
}

function runUntilAnswered(...args: readonly string[]): Run {
  for (let attempt = 1; ; attempt++) {
    const run = livegraft('--json', ...args);
    const { code } = run.lines.at(-1) ?? {};
    if (attempt === 5 || !TRY_AGAIN.some((answer) => answer === code)) return run;
  }
}

function said(run: Run): string {
  return `${run.code} ${JSON.stringify(run.lines.at(-1))} ${run.stderr}`;
}

async function withBench<T>(mode: 'load' | 'held', work: (bench: Bench) => Promise<T>): Promise<T> {
  const patches = build();
  // Its threads keep the processors busy: livegraft is to come first, or this takes several times as long.
  const threads = mode === 'load' ? '2' : '1';
  const target = await startTarget('/usr/bin/nice', '-n', '5', patches.program, mode, '7200', threads);
  const stop = () => target.stop();
  process.once('exit', stop);
  try {
    return await work(new Bench(target, patches));
  } finally {
    process.off('exit', stop);
    stop();
  }
}

const STEPS_TO_LET_GO = 10;

export interface StepKills {
  readonly operation: Operation;
  /** How many steps a run that is not killed takes; they vary a little with what the threads are doing. */
  readonly steps: number;
  /** Runs of which a step was chosen; those at the very end may have been quicker. */
  readonly chosen: number;
  readonly killed: number;
}

/** Part of an operation's steps, counted from 1, both ends included. */
export interface StepRange {
  readonly first: number;
  readonly last: number;
}

const ALL_STEPS: StepRange = { first: 1, last: Number.POSITIVE_INFINITY };

/** Kills an operation before `most` of its steps, spread over all and chosen by the seed; before all where there are no more. */
export async function killAtSteps(
  operation: Operation,
  most: number,
  seed: number,
  range: StepRange = ALL_STEPS,
): Promise<StepKills> {
  const isHeld = operation === 'reverse' || operation === 'turn';
  return await withBench(isHeld ? 'held' : 'load', async (bench) => {
    const command = bench.command(operation);
    // In mid-transition: right before one that is given up at once lets its threads go.
    const turnAt =
      operation === 'turn'
        ? countSteps(undefined, ...bench.command('apply'), '--timeout', '0.01') - STEPS_TO_LET_GO
        : 0;
    bench.toOriginal();
    bench.prepare(operation);
    const steps = countSteps({ kind: 'none', step: 0, turnAt }, ...command);
    bench.toOriginal();
    const choices = Choices.ofSeed(seed);
    const begin = turnAt + range.first - 1;
    const end = Math.min(steps, turnAt + range.last);
    const stride = Math.max(1, (end - begin) / most);
    let [chosen, killed] = [0, 0];
    for (let from = begin; from < end; from += stride) {
      const step = Math.floor(from + choices.next() * stride) + 1;
      bench.prepare(operation);
      const run = hurtLivegraft({ kind: 'kill-before', step, turnAt }, ...command);
      chosen += 1;
      if (run.code === 'killed') killed += 1;
      await bench.account.expectWorks();
      if (chosen % 2 === 0 && operation !== 'turn') bench.complete(operation);
      bench.toOriginal();
      await bench.account.expectWorks();
    }
    await bench.expectAsBefore(isHeld);
    return { operation, steps: steps - turnAt, chosen, killed };
  });
}

/** How often a command whose step failed had done all the same, had changed nothing, or had left a transition behind. */
export interface StepFailures {
  readonly steps: number;
  readonly done: number;
  readonly unchanged: number;
  readonly incomplete: number;
}

/** Lets steps of an apply and of a revert fail, spread over all and chosen by the seed. */
export async function failAtSteps(
  most: number,
  seed: number,
  range: StepRange = ALL_STEPS,
): Promise<StepFailures> {
  return await withBench('load', async (bench) => {
    const steps: Record<string, number> = {};
    for (const operation of ['apply', 'revert'] as const)
      steps[operation] = countSteps(undefined, ...bench.command(operation));
    const codes = { 0: 0, 1: 0, 3: 0 };
    const choices = Choices.ofSeed(seed);
    for (const operation of ['apply', 'revert'] as const) {
      const end = Math.min(steps[operation] ?? 0, range.last);
      const stride = Math.max(1, (end - range.first + 1) / most);
      for (let from = range.first - 1; from < end; from += stride) {
        const step = Math.floor(from + choices.next() * stride) + 1;
        bench.prepare(operation);
        const { code, stderr } = hurtLivegraft({ kind: 'throw', step }, ...bench.command(operation));
        check(code === 0 || code === 1 || code === 3, `${operation}, step ${step}: ${code} ${stderr}`);
        codes[code] += 1;
        if (code !== 0) bench.expectTransition(code === 3);
        await bench.account.expectWorks();
        bench.toOriginal();
        await bench.account.expectWorks();
      }
    }
    await bench.expectAsBefore(false);
    const all = (steps.apply ?? 0) + (steps.revert ?? 0);
    return { steps: all, done: codes[0], unchanged: codes[1], incomplete: codes[3] };
  });
}

function countSteps(fault: Fault | undefined, ...command: readonly string[]): number {
  const { steps, stderr } = hurtLivegraft(fault, ...command);
  check(steps !== undefined, stderr);
  return steps;
}

export interface RandomKills {
  readonly kills: number;
  /** Commands that had ended before they were to be killed. */
  readonly ended: number;
  /** Kills by the command. */
  readonly of: Readonly<Record<string, number>>;
}

/** Kills commands at random instants of their time until so many have been killed; now and then also the one that mends. */
export async function killAtRandom(
  kills: number,
  seed: number,
  onKill: (count: number) => void = () => {},
): Promise<RandomKills> {
  return await withBench('load', async (bench) => {
    const choices = Choices.ofSeed(seed);
    const of: Record<string, number> = {};
    let [killed, ended] = [0, 0];
    /** Of the command from its first word to its end. */
    let usualMs = 150;
    const kill = async (operation: Operation) => {
      const run = startLivegraft('--json', ...bench.command(operation));
      await run.begun;
      const start = performance.now();
      await pause(usualMs * choices.next());
      run.signal('SIGKILL');
      const { code } = await run.done;
      if (code === -1) {
        killed += 1;
        of[operation] = (of[operation] ?? 0) + 1;
        usualMs *= 1.02;
        onKill(killed);
      } else {
        // A command that was killed before, at its very end, may have done it.
        const isDone = [...NOTHING_LEFT, OTHERS_FIRST, ...TRY_AGAIN].some((answer) =>
          run.output().includes(`"code":"${answer}"`),
        );
        check(code === 0 || isDone, `${operation} ended with ${code}: ${run.output()}`);
        ended += 1;
        usualMs = 0.9 * usualMs + 0.1 * (performance.now() - start);
      }
      await bench.account.expectWorks();
    };
    while (killed < kills) {
      const operation = (['apply', 'revert', 'replace'] as const)[choices.below(3)] ?? 'apply';
      bench.prepare(operation === 'apply' ? 'apply' : 'revert');
      await kill(operation);
      while (choices.chance(0.25)) await kill(choices.chance(0.5) ? 'revert' : operation);
      if (choices.chance(0.5)) bench.complete(operation);
      bench.toOriginal();
      await bench.account.expectWorks();
    }
    await bench.expectAsBefore(false);
    return { kills: killed, ended, of };
  });
}
