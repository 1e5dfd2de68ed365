import { describe, expect, it } from 'vitest';
import type { ConsistencyModel, Direction } from '../../engine/target.js';
import { runTransition, TransitionControl } from '../../engine/transition.js';
import { ConsistencyViolation, Random, SimulatedMachine, type SimulatedPatch } from './machine.js';
import { SimulatedDeath, SimulatedTransition } from './simulated-transition.js';

const FUNCTIONS = ['main', 'f', 'g', 'h', 'leaf'];
const patchOf = (id: string, ...names: string[]): SimulatedPatch => ({
  id,
  functions: names.map((name) => ({ name, patch: id })),
});
const PATCHES = [patchOf('a', 'f', 'g'), patchOf('b', 'g', 'h'), patchOf('c', 'f', 'leaf')];

interface Story {
  readonly model: ConsistencyModel;
  readonly deathChance: number;
}

/** Applies and removes patches, with deaths, reverses and time-outs between, and brings the machine to rest. */
async function live(seed: number, { model, deathChance }: Story) {
  const machine = new SimulatedMachine({ seed, tasks: 4, functions: FUNCTIONS, longestSleep: 40 });
  const counts = { complete: 0, incomplete: 0, deaths: 0, reversed: 0 };
  const plan = new Random(seed ^ 0x5bd1e995);
  for (let operation = 0; operation < 6 || machine.registry.transition !== undefined; operation++) {
    if (operation > 200) throw new Error('the transition does not come to an end');
    const [patch, direction] = chooseOperation(machine, plan);
    const target = new SimulatedTransition({
      machine,
      patch,
      // After a while nothing dies any more: every story must come to its end.
      deathChance: operation < 60 ? deathChance : 0,
      unreliableChance: 0.1,
      unstoppableChance: 0.05,
    });
    const control = new TransitionControl();
    const reverseAtMs = plan.chance(0.3) ? plan.below(60) : Number.POSITIVE_INFINITY;
    try {
      const result = await runTransition(target, {
        direction,
        model,
        timeoutMs: operation < 60 ? plan.below(400) : 60_000,
        clock: { nowMs: () => target.nowMs },
        control,
        onEvent: () => {
          if (target.nowMs >= reverseAtMs && counts.reversed <= operation) {
            counts.reversed += 1;
            control.reverse('the operator changed their mind');
          }
        },
      });
      counts[result.kind] += 1;
      if (result.kind === 'incomplete' && result.stragglers.length === 0)
        throw new Error('incomplete without a straggler');
      if (result.kind === 'complete') expectAtRest(machine, patch, result.direction);
    } catch (error) {
      if (!(error instanceof SimulatedDeath)) throw error;
      counts.deaths += 1;
    }
    machine.onEvent = () => {};
    machine.run(plan.below(50));
  }
  return counts;
}

/** A transition that was left goes on in either direction; else a patch is enabled, or one on top removed. */
function chooseOperation(machine: SimulatedMachine, plan: Random): readonly [SimulatedPatch, Direction] {
  const inTransition = machine.patchInTransition();
  if (inTransition !== undefined) return [inTransition, plan.chance(0.5) ? 'patch' : 'unpatch'];
  const enabled = machine.registry.patches;
  const free = PATCHES.filter((patch) => !enabled.includes(patch));
  const removable = enabled.filter((patch) => machine.versions.above(patch.id).length === 0);
  if (removable.length > 0 && (free.length === 0 || plan.chance(0.5)))
    return [removable[plan.below(removable.length)] as SimulatedPatch, 'unpatch'];
  return [free[plan.below(free.length)] as SimulatedPatch, 'patch'];
}

function expectAtRest(machine: SimulatedMachine, patch: SimulatedPatch, direction: Direction): void {
  const isEnabled = machine.registry.patches.includes(patch);
  if (isEnabled !== (direction === 'patch')) throw new Error(`the registry is wrong about ${patch.id}`);
  if (machine.registry.transition !== undefined) throw new Error('a transition is left over');
}

describe('a simulated target', () => {
  it.each<Story>([
    { model: 'hybrid', deathChance: 0 },
    { model: 'hybrid', deathChance: 0.02 },
    { model: 'stop', deathChance: 0 },
    { model: 'stop', deathChance: 0.02 },
  ])(
    'never mixes versions nor returns into one that is gone: $model, chance of death $deathChance',
    async (story) => {
      const total = { complete: 0, incomplete: 0, deaths: 0, reversed: 0 };
      for (let seed = 1; seed <= 600; seed++) {
        const counts = await live(seed, story).catch((cause) => {
          throw new Error(`seed ${seed}: ${(cause as Error).message}`, { cause });
        });
        for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += counts[key];
      }
      expect(total.complete).toBeGreaterThan(1500);
      expect(total.incomplete).toBeGreaterThan(100);
      expect(total.reversed).toBeGreaterThan(100);
      if (story.deathChance > 0) expect(total.deaths).toBeGreaterThan(500);
    },
  );

  it('does see a mix where nothing is checked', async () => {
    let violations = 0;
    for (let seed = 1; seed <= 100; seed++) {
      await live(seed, { model: 'immediate', deathChance: 0 }).catch((error: unknown) => {
        if (!(error instanceof ConsistencyViolation)) throw error;
        violations += 1;
      });
    }
    expect(violations).toBeGreaterThan(50);
  });

  it('is the same for the same seed', async () => {
    const story = { model: 'hybrid', deathChance: 0.02 } as const;
    expect(await live(7, story)).toEqual(await live(7, story));
  });
});
