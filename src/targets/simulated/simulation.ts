import { Choices, choicesOfSeed } from './choices.js';
import { ConsistencyViolation } from './oracle.js';
import { emptyTally, runSchedule, type Tally } from './schedule.js';
import { shrinkChoices } from './shrink.js';

/** Many schedules, and what to make of one that fails. */

export interface FailedSchedule {
  readonly seed: number;
  readonly violation: string;
  /** How many choices the seed had made until it failed. */
  readonly choices: number;
}

export interface SimulationOptions {
  readonly firstSeed: number;
  readonly schedules: number;
  readonly isLong?: boolean;
}

/** Runs the schedules of `schedules` seeds in a row, until one fails. Throws whatever is no violation. */
export async function simulate(
  options: SimulationOptions,
): Promise<{ readonly tally: Tally; readonly failed: FailedSchedule | undefined }> {
  const tally = emptyTally();
  const { firstSeed, schedules, isLong = false } = options;
  for (let seed = firstSeed; seed < firstSeed + schedules; seed++) {
    const choices = Choices.ofSeed(seed);
    const violation = await violationOf({ choices, tally, isLong });
    if (violation !== undefined)
      return { tally, failed: { seed, violation: violation.message, choices: choices.count } };
  }
  return { tally, failed: undefined };
}

export interface ShrunkSchedule {
  readonly violation: string;
  /** How many choices are left. */
  readonly choices: number;
  /** What happens, a line a step. */
  readonly steps: readonly string[];
}

/** The shortest schedule that could be found from a failed one that breaks the same promise, told step by step. */
export async function explainFailure(failed: FailedSchedule, isLong = false): Promise<ShrunkSchedule> {
  const run = (list: readonly number[], log?: (line: string) => void) =>
    violationOf({ choices: Choices.ofList(list), tally: emptyTally(), isLong, log });
  const kind = kindOf(failed.violation);
  const list = await shrinkChoices(choicesOfSeed(failed.seed, failed.choices), async (candidate) => {
    const violation = await run(candidate);
    return violation !== undefined && kindOf(violation.message) === kind;
  });
  const steps: string[] = [];
  const violation = await run(list, (line) => steps.push(line));
  return { violation: violation?.message ?? failed.violation, choices: list.length, steps };
}

async function violationOf(
  options: Parameters<typeof runSchedule>[0],
): Promise<ConsistencyViolation | undefined> {
  try {
    await runSchedule(options);
    return undefined;
  } catch (error) {
    if (error instanceof ConsistencyViolation) return error;
    throw error;
  }
}

/** Which promise was broken: the message without its task, its numbers and its stack. */
function kindOf(message: string): string {
  return message.replace(/:.*$/s, '').replace(/task \d+.*$|\d+/g, '');
}
