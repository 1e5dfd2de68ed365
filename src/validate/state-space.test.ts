import { describe, expect, it } from 'vitest';
import { InstructionTable, makeEffect, OpCode } from '../arch/instruction-table.js';
import { x86_64 } from '../arch/x86-64/index.js';
import { FrameState, REGISTERS } from './frame-state.js';
import { COVERED, type StateId, StateSpace } from './state-space.js';
import { cfaValue, UNKNOWN } from './values.js';

const RED_ZONE_BYTES = 0;
const ENTRY_MASK = 0b1111_0000_0100_1000;
const [RBX, RBP, RSP] = [3, 6, 7];

function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 16) % below;
  };
}

/** Instructions as they come in frames: many of the stack and frame pointer, each with few different values. */
function makeTable(count: number, seed: number): InstructionTable {
  const next = random(seed);
  const table = new InstructionTable(count);
  table.count = count;
  const register = () => [RSP, RSP, RBP, RBX, next(16)][next(5)] as number;
  for (let i = 0; i < count; i++) {
    const op = [0, 1, 1, 2, 3, 3, 4, 5, 5, 5, 6, 7, 7, 8, 8, 9, 10, 11][next(18)] as number;
    const writes = op === OpCode.none ? 1 << next(16) : 0;
    table.effects[i] = makeEffect(op, register(), register(), writes);
    const isStackSized = op >= OpCode.push && op <= OpCode.popOther;
    table.values[i] = isStackSized ? 8 : op === OpCode.enter ? 32 : 8 * (next(9) - 4);
  }
  return table;
}

/** Everything that a state says, whatever the order of its slots. */
function contents(state: FrameState): unknown {
  const slots = Array.from({ length: state.slotCount }, (_, i) => [
    state.slotAddresses[i],
    state.slotValues[i],
  ]);
  slots.sort(([a = 0], [b = 0]) => a - b);
  return [[...state.registers], state.known, slots, state.isPartial, state.isAssumed];
}

/** Walks at random, with returns to states met before. Each step is done in the space, and anew without it. */
function walk(states: StateSpace, steps: number, seed: number, visit?: (id: StateId) => void): void {
  const next = random(seed);
  const table = makeTable(200, seed);
  const met: StateId[] = [states.entry(ENTRY_MASK)];
  for (let n = 0; n < steps; n++) {
    const from = met[next(met.length)] as StateId;
    const i = next(table.count);
    const fresh = new FrameState(x86_64, RED_ZONE_BYTES);
    const before = states.load(from);
    for (let register = 0; register < REGISTERS; register++)
      fresh.setRegister(register, before.registers[register] as number);
    for (let slot = 0; slot < before.slotCount; slot++)
      fresh.setSlot(before.slotAddresses[slot] as number, before.slotValues[slot] as number);
    fresh.changed = 0;
    fresh.apply(table, i);
    states.changed = 0;
    const to = states.after(from, table, i);
    expect(contents(states.load(to))).toEqual(contents(fresh));
    // A bit too many costs a check, one too few leaves a wrong row unnoticed.
    expect(states.changed).toBe(fresh.changed);
    if (!met.includes(to)) met.push(to);
    visit?.(to);
  }
}

describe('a state space', () => {
  it('makes of states what each instruction does, also when it has done so before', () => {
    const states = new StateSpace(x86_64, RED_ZONE_BYTES);
    for (const seed of [1, 2, 3]) walk(states, 800, seed);
    for (const seed of [1, 2, 3]) walk(states, 800, seed);
  });

  it('gives equal states one id, and others another', () => {
    const states = new StateSpace(x86_64, RED_ZONE_BYTES);
    const byContents = new Map<string, StateId>();
    walk(states, 1000, 4, (id) => {
      const key = JSON.stringify(contents(states.load(id)));
      expect(byContents.get(key) ?? id).toBe(id);
      byContents.set(key, id);
    });
    expect(new Set(byContents.values()).size).toBe(byContents.size);
  });

  it('joins two states to what holds in both', () => {
    const states = new StateSpace(x86_64, RED_ZONE_BYTES);
    const ids: StateId[] = [];
    walk(states, 300, 5, (id) => ids.push(id));
    const next = random(6);
    for (let n = 0; n < 400; n++) {
      const [a, b] = [ids[next(ids.length)] as StateId, ids[next(ids.length)] as StateId];
      const joined = states.join(a, b);
      const result = joined === COVERED ? a : joined;
      for (let register = 0; register < REGISTERS; register++) {
        const [first, second] = [states.register(a, register), states.register(b, register)];
        expect(states.register(result, register)).toBe(first === second ? first : UNKNOWN);
      }
      for (let offset = -200; offset <= 40; offset += 8) {
        const [first, second] = [states.slot(a, cfaValue(offset)), states.slot(b, cfaValue(offset))];
        expect(states.slot(result, cfaValue(offset))).toBe(first === second ? first : UNKNOWN);
      }
    }
  });

  it('holds that what is known for sure of one way is assumed when another was', () => {
    const states = new StateSpace(x86_64, RED_ZONE_BYTES);
    const sure = states.entry(ENTRY_MASK);
    const working = states.load(sure);
    working.assume(true);
    const assumed = states.keep(working);
    expect(assumed).not.toBe(sure);
    const joined = states.join(sure, assumed);
    expect([states.isAssumed(joined), states.isPartial(joined)]).toEqual([true, true]);
    expect(states.join(assumed, sure)).toBe(COVERED);
  });

  it('takes a state for unknown when there is no room for it', () => {
    const states = new StateSpace(x86_64, RED_ZONE_BYTES, 100);
    const table = makeTable(1, 1);
    table.effects[0] = makeEffect(OpCode.push, RBX, 0, 0);
    table.values[0] = 8;
    let id = states.entry(ENTRY_MASK);
    expect(states.register(id, RSP)).toBe(cfaValue(-8));
    for (let n = 0; n < 10; n++) id = states.after(id, table, 0);
    expect([states.known(id), states.isAssumed(id), states.isPartial(id)]).toEqual([0, true, true]);
  });
});
