import { describe, expect, it } from 'vitest';
import { type ObjectTransition, planArrival, settlePart } from './objects.js';

const [a, b] = [{ id: 'a' }, { id: 'b' }];
const of = (
  patchId: string,
  phase: ObjectTransition['phase'],
  direction: ObjectTransition['direction'],
  objects?: readonly string[],
): ObjectTransition => ({ patchId, phase, direction, ...(objects === undefined ? {} : { objects }) });

describe('planArrival', () => {
  it('brings all pending patches, oldest first, final at once', () => {
    expect(planArrival([a, b], 'lib', undefined)).toEqual([
      { patch: a, entries: 'direct' },
      { patch: b, entries: 'direct' },
    ]);
  });

  it.each([
    ['installing', 'patch', 'below'],
    ['installing', 'unpatch', 'direct'],
    ['running', 'patch', 'choosing'],
    ['running', 'unpatch', 'choosing'],
    ['finishing', 'patch', 'direct'],
  ] as const)(
    'gives it what tasks have of a patch whose transition is %s (%s)',
    (phase, direction, entries) => {
      expect(planArrival([a, b], 'lib', of('b', phase, direction))).toEqual([
        { patch: a, entries: 'direct' },
        { patch: b, entries },
      ]);
    },
  );

  it('brings nothing of a patch that has gone but for the record', () => {
    expect(planArrival([a, b], 'lib', of('b', 'finishing', 'unpatch'))).toEqual([
      { patch: a, entries: 'direct' },
    ]);
  });

  it('brings nothing of patches that are being replaced', () => {
    const replacing = { ...of('b', 'running', 'patch'), replaces: true };
    expect(planArrival([a, b], 'lib', replacing)).toEqual([{ patch: b, entries: 'choosing' }]);
    expect(planArrival([a], 'lib', replacing)).toEqual([]);
  });

  it('takes a patch for enabled that is being brought to another of its objects', () => {
    expect(planArrival([b], 'lib', of('b', 'running', 'patch', ['other']))).toEqual([
      { patch: b, entries: 'direct' },
    ]);
  });
});

describe('settlePart', () => {
  const part = { patch: 'a', object: 'lib', isInstalled: false, isShut: true };

  it('takes back what no task can have run', () => {
    expect(settlePart(part, undefined)).toBe('takeBack');
    expect(settlePart(part, of('b', 'running', 'patch'))).toBe('takeBack');
    expect(settlePart(part, of('a', 'running', 'patch'))).toBe('takeBack');
    expect(settlePart(part, of('a', 'installing', 'unpatch'))).toBe('takeBack');
    expect(settlePart(part, of('a', 'finishing', 'patch'))).toBe('takeBack');
  });

  it('leaves alone what the transition has yet to install, or has removed', () => {
    expect(settlePart(part, of('a', 'installing', 'patch'))).toBe('keep');
    expect(settlePart(part, of('a', 'finishing', 'unpatch'))).toBe('keep');
    expect(settlePart({ ...part, isInstalled: true }, undefined)).toBe('keep');
  });

  it('completes what every task runs', () => {
    expect(settlePart({ ...part, isShut: false }, undefined)).toBe('complete');
    expect(settlePart({ ...part, isShut: false }, of('b', 'running', 'patch'))).toBe('complete');
    expect(settlePart({ ...part, isShut: false }, of('a', 'running', 'patch'))).toBe('keep');
  });
});
