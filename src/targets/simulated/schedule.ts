import { LivegraftError } from '../../base/errors.js';
import type { ConsistencyModel, Direction } from '../../engine/target.js';
import { runTransition, TransitionControl } from '../../engine/transition.js';
import type { Choices } from './choices.js';
import { SimulatedMachine, type SimulatedPatch } from './machine.js';
import { LIBRARY, OBJECTS } from './objects.js';
import { ConsistencyViolation } from './oracle.js';
import { changesLibrary, SimulatedObjects } from './simulated-objects.js';
import { SimulatedDeath, SimulatedTransition } from './simulated-transition.js';

/** One schedule: patches come, go, turn around and replace each other in a simulated program, in an order that choices give. */

const patchOf = (id: string, replaces: boolean, ...names: string[]): SimulatedPatch => ({
  id,
  replaces,
  functions: names.map((name) => ({ name, patch: id })),
});

/** Some have callbacks, `answer` is what their pre-patch ones answer. */
function makePatches(answer: () => number): readonly SimulatedPatch[] {
  const ok = () => 0;
  const callbacks = { prePatch: answer, postPatch: ok, preUnpatch: ok, postUnpatch: ok };
  return [
    { ...patchOf('a', false, 'f', 'g', 'x'), callbacks },
    patchOf('b', false, 'g', 'h'),
    patchOf('c', false, 'f', 'leaf', 'x', 'y'),
    { ...patchOf('r', true, 'f', 'h', 'y'), callbacks },
  ];
}

/** How often what happened, over one or many schedules. */
export interface Tally {
  schedules: number;
  complete: number;
  incomplete: number;
  reversed: number;
  replaced: number;
  vetoed: number;
  forced: number;
  deaths: number;
  gone: number;
  /** Patches that came to a library as it was loaded, that were refused it, and whose callbacks ran as it was unloaded. */
  arrived: number;
  refused: number;
  left: number;
  /** Patches that were brought to the library later, in a transition of its own. */
  completed: number;
}

export function emptyTally(): Tally {
  return {
    schedules: 0,
    complete: 0,
    incomplete: 0,
    reversed: 0,
    replaced: 0,
    vetoed: 0,
    forced: 0,
    deaths: 0,
    gone: 0,
    arrived: 0,
    refused: 0,
    left: 0,
    completed: 0,
  };
}

export interface ScheduleOptions {
  readonly choices: Choices;
  readonly tally: Tally;
  /** More tasks and more operations. */
  readonly isLong?: boolean;
  readonly log?: ((line: string) => void) | undefined;
}

/** From here on nothing goes wrong any more, and the program winds down: every transition must come to its end. */
const CALM_AFTER = 5;
const LONG_CALM_AFTER = 12;
const CALM_TIMEOUT_MS = 5000;
const MODELS: readonly ConsistencyModel[] = [
  ...(['hybrid', 'hybrid', 'hybrid', 'hybrid', 'stop', 'stop', 'stop', 'lazy', 'lazy'] as const),
  'immediate',
];

const ATTENDS = ['withoutCallbacks', 'withCallbacks', undefined] as const;

/** Throws a {@link ConsistencyViolation} where the engine or the target breaks a promise. */
export async function runSchedule(options: ScheduleOptions): Promise<void> {
  const { choices, tally, isLong = false } = options;
  tally.schedules += 1;
  const hasStateTable = choices.chance(0.3);
  const machine = new SimulatedMachine({
    choices,
    tasks: 1 + choices.below(isLong ? 12 : 3),
    mostTasks: isLong ? 24 : 6,
    longestSleep: 8,
    hasLibrary: true,
    hasStateTable,
    log: options.log,
  });
  machine.run(choices.below(20));
  const model = choices.pick(MODELS);
  let isCalm = false;
  const story: Story = {
    ...options,
    machine,
    model,
    hasBarrier: model === 'lazy' || choices.chance(0.3),
    attends: choices.pick(ATTENDS),
    deathChance: choices.pick([0, 0, 0.02, 0.05]),
    unreliableChance: choices.pick([0, 0.1, 0.3]),
    patches: makePatches(() => (!isCalm && choices.chance(0.1) ? -19 : 0)),
    origin: [],
  };
  const calmAfter = isLong ? LONG_CALM_AFTER : CALM_AFTER;
  const operations = 1 + choices.below(isLong ? 8 : 3);
  for (let operation = 0; operation < operations || machine.change !== undefined; operation++) {
    if (operation > calmAfter + 4) throw new ConsistencyViolation('the transition does not come to an end');
    if (machine.isGone) tally.gone += 1;
    isCalm = operation >= calmAfter;
    if (machine.isGone || !(await operate(story, isCalm))) return;
    if (!isCalm && choices.chance(0.5)) watch(story);
    // What a table has for threads that nobody has seen is seen by what they do until the next run.
    machine.run(choices.below(hasStateTable ? 60 : 12));
  }
}

interface Story extends ScheduleOptions {
  readonly machine: SimulatedMachine;
  readonly model: ConsistencyModel;
  readonly hasBarrier: boolean;
  readonly attends: (typeof ATTENDS)[number];
  readonly deathChance: number;
  readonly unreliableChance: number;
  readonly patches: readonly SimulatedPatch[];
  /** What was enabled before the transition began. */
  origin: readonly SimulatedPatch[];
}

/** False when the schedule ends here. */
async function operate(story: Story, isCalm: boolean): Promise<boolean> {
  const { machine, choices, tally } = story;
  const objects = new SimulatedObjects(machine, false, () => {});
  for (const patch of story.patches) if (!machine.patches.includes(patch)) objects.giveUp(patch, OBJECTS);
  objects.settle();
  const [patch, direction, some] = chooseOperation(story);
  const wasLeft = machine.change !== undefined;
  if (machine.change === undefined) {
    story.origin = machine.patches;
    if (direction === 'patch') objects.prepare(patch);
  }
  machine.oracle.isLenient = story.model === 'immediate';
  const target = new SimulatedTransition({
    machine,
    patch,
    objects: some,
    attends: story.attends,
    hasBarrier: story.hasBarrier,
    deathChance: isCalm ? 0 : story.deathChance,
    unreliableChance: isCalm ? 0 : story.unreliableChance,
    instantsPerMs: 2,
  });
  const control = new TransitionControl();
  let ways = 0;
  try {
    const result = await runTransition(target, {
      direction,
      model: story.model,
      timeoutMs: isCalm ? CALM_TIMEOUT_MS : choices.below(50),
      retry: { firstMs: 1, factor: 1.6, longestMs: 8 },
      clock: { nowMs: () => target.nowMs },
      control,
      onEvent: (event) => {
        if (event.kind === 'reversing') ways += 1;
        // The first attempts still meet the program as it was.
        if (isCalm && target.nowMs > 0) machine.isCalm = true;
        if (isCalm || event.kind === 'finished') return;
        if (choices.chance(wasLeft ? 0.05 : 0.015)) control.reverse('the operator changed their mind');
        else if (choices.chance(0.002)) {
          // The patch is recorded before anybody is switched unchecked.
          machine.forced = new Set([...machine.forced, patch.id]);
          machine.oracle.isLenient = true;
          control.force();
        }
      },
    });
    target.objects.attend();
    tally.arrived += target.objects.arrived;
    tally.refused += target.objects.refused;
    tally.left += target.objects.left;
    tally.reversed += ways;
    if (machine.forced.size > 0) {
      // A forced patch is there for good, and what is inside of old code is not known any more.
      tally.forced += 1;
      return false;
    }
    tally[result.kind] += 1;
    if (result.kind === 'incomplete') {
      if (isCalm) throw new ConsistencyViolation('nothing is in the way, and the transition does not end');
      if (result.stragglers.length === 0) throw new ConsistencyViolation('incomplete without a straggler');
    } else {
      if (patch.replaces && result.direction === 'patch') tally.replaced += 1;
      if (some !== undefined && result.direction === 'patch') tally.completed += 1;
      machine.oracle.expectAtRest(expectedPatches(story.origin, patch, result.direction, some));
      if (story.model === 'immediate') return false;
    }
  } catch (error) {
    if (error instanceof SimulatedDeath) tally.deaths += 1;
    else if (error instanceof LivegraftError && error.code === 'target-gone') {
      tally.gone += 1;
      return false;
    } else if (error instanceof LivegraftError && error.code === 'callback-veto') {
      tally.vetoed += 1;
      // Of a transition that was left half-done before, the rest stays.
      if (machine.change === undefined) {
        objects.giveUp(patch, some ?? OBJECTS);
        machine.oracle.expectAtRest(story.origin);
      }
    } else throw error;
  } finally {
    machine.detach();
  }
  return machine.forced.size === 0;
}

/** Nothing is in the tool's hands but what is loaded, whatever state patches are in. */
function watch(story: Story): void {
  const { machine, choices, tally } = story;
  machine.isAnswered = true;
  machine.isToldOfLeaving = story.attends === 'withCallbacks';
  const { deathChance } = story;
  const objects = new SimulatedObjects(machine, story.attends === 'withCallbacks', () => {
    machine.run(choices.below(4));
    if (machine.isGone) throw new SimulatedDeath('nothing is left to watch');
    if (deathChance > 0 && choices.chance(deathChance)) {
      machine.log(() => 'livegraft: dies');
      throw new SimulatedDeath('the tool dies');
    }
  });
  try {
    for (let i = choices.below(8); i >= 0 && !machine.isGone; i--) {
      machine.run(choices.below(12));
      objects.attend();
    }
  } catch (error) {
    if (!(error instanceof SimulatedDeath)) throw error;
    tally.deaths += 1;
  } finally {
    machine.detach();
  }
  tally.arrived += objects.arrived;
  tally.refused += objects.refused;
  tally.left += objects.left;
}

/**
 * A transition that was left goes on in either direction; else a patch is enabled, one on top removed, or one brought to a library that
 * came unattended: older ones first.
 */
function chooseOperation({
  machine,
  choices,
  patches: known,
}: Story): readonly [SimulatedPatch, Direction, (readonly string[] | undefined)?] {
  const { patches, change, versions } = machine;
  const inTransition = patches.find((patch) => patch.id === change?.patch);
  if (inTransition !== undefined)
    return [inTransition, choices.pick(['patch', 'unpatch'] as const), change?.objects];
  const [pending] = machine.pending;
  if (pending !== undefined && choices.chance(0.8)) return [pending, 'patch', [LIBRARY]];
  const free = known.filter((patch) => !patches.includes(patch));
  const fit = free.filter((patch) => pending === undefined || patch.replaces || !changesLibrary(patch));
  const removable = patches.filter((patch) => versions.above(patch.id).length === 0);
  if (removable.length > 0 && (fit.length === 0 || choices.chance(0.5)))
    return [choices.pick(removable), 'unpatch'];
  return [choices.pick(fit), 'patch'];
}

function expectedPatches(
  origin: readonly SimulatedPatch[],
  patch: SimulatedPatch,
  direction: Direction,
  objects: readonly string[] | undefined,
): readonly SimulatedPatch[] {
  if (objects !== undefined) return origin;
  if (direction === 'unpatch') return origin.filter((other) => other !== patch);
  if (origin.includes(patch)) return origin;
  return patch.replaces ? [patch] : [...origin, patch];
}
