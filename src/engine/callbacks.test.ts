import { describe, expect, it } from 'vitest';
import { LivegraftError } from '../base/errors.js';
import {
  type CallbackKind,
  type CallbackObject,
  type CallbackStage,
  type callbackAt,
  passMomentAtOnce,
  stageAfter,
} from './callbacks.js';

class FakeObject implements CallbackObject {
  stage: CallbackStage = 'none';
  readonly ran: CallbackKind[] = [];
  failure: LivegraftError | undefined;
  vetoes = false;

  constructor(
    readonly name: string,
    readonly kinds: readonly CallbackKind[] = ['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch'],
  ) {}

  has(kind: CallbackKind): boolean {
    return this.kinds.includes(kind);
  }

  run(kind: CallbackKind): LivegraftError | undefined {
    this.ran.push(kind);
    if (this.vetoes) throw new LivegraftError('callback-veto', 'no');
    this.stage = stageAfter(kind);
    return this.failure;
  }

  setStage(stage: CallbackStage): void {
    this.stage = stage;
  }
}

const pass = (object: FakeObject, ...moments: Parameters<typeof callbackAt>[1][]) => {
  for (const moment of moments) passMomentAtOnce([object], moment, () => {});
  return object.ran;
};

describe('callbacks', () => {
  it('have their turn in the order of the kernel', () => {
    const object = new FakeObject('a');
    expect(pass(object, 'enable', 'enabled', 'disable', 'disabled')).toEqual([
      'prePatch',
      'postPatch',
      'preUnpatch',
      'postUnpatch',
    ]);
    expect(object.stage).toBe('none');
  });

  it('of a patch turned around before it was complete: post-patch and pre-unpatch are passed over', () => {
    expect(pass(new FakeObject('a'), 'enable', 'disable', 'disabled')).toEqual(['prePatch', 'postUnpatch']);
  });

  it('of a removal turned around: post-patch runs again, pre-patch does not', () => {
    const object = new FakeObject('a');
    expect(pass(object, 'enable', 'enabled', 'disable', 'enable', 'enabled', 'disable', 'disabled')).toEqual([
      'prePatch',
      'postPatch',
      'preUnpatch',
      'postPatch',
      'preUnpatch',
      'postUnpatch',
    ]);
  });

  it('run once, also when a run goes on where another ended', () => {
    const object = new FakeObject('a');
    expect(
      pass(object, 'enable', 'enable', 'enabled', 'enabled', 'disable', 'disable', 'disabled', 'disabled'),
    ).toEqual(['prePatch', 'postPatch', 'preUnpatch', 'postUnpatch']);
  });

  it('that a patch does not have change nothing about the turns of the others', () => {
    expect(pass(new FakeObject('a', ['postPatch', 'postUnpatch']), 'enable', 'disable', 'disabled')).toEqual([
      'postUnpatch',
    ]);
    expect(pass(new FakeObject('a', ['preUnpatch']), 'enable', 'enabled', 'disable', 'disabled')).toEqual([
      'preUnpatch',
    ]);
  });

  it('a veto leaves the objects behind alone, and what ran before is taken back', () => {
    const [first, second, third] = [new FakeObject('a'), new FakeObject('b'), new FakeObject('c')];
    second.vetoes = true;
    const all = [first, second, third];
    expect(() => passMomentAtOnce(all, 'enable', () => {})).toThrow('no');
    passMomentAtOnce(all, 'disabled', () => {});
    expect(all.map((object) => object.ran)).toEqual([['prePatch', 'postUnpatch'], ['prePatch'], []]);
  });

  it('reports each one that ran, with its failure', () => {
    const object = new FakeObject('a', ['postPatch']);
    object.failure = new LivegraftError('callback-crashed', 'SIGSEGV');
    const reports: unknown[] = [];
    for (const moment of ['enable', 'enabled'] as const)
      passMomentAtOnce([object], moment, (report) => reports.push(report));
    expect(reports).toEqual([{ object: 'a', callback: 'postPatch', failure: object.failure }]);
    expect(object.stage).toBe('postPatched');
  });
});
