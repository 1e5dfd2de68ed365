import { describe, expect, it } from 'vitest';
import { pendingModules, restrictToModules, withoutLeftModules } from './kernel-patch-modules.js';
import type { KernelRegistry, RegisteredKernelFunction, RegisteredKernelPatch } from './kernel-registry.js';

const fn = (object: string, name: string): RegisteredKernelFunction => ({
  object,
  name,
  old: [],
  new: [],
  site: 0,
  original: [],
  isDisplaced: false,
  trampoline: 0,
});
const place = (name: string) => ({ name, structAddress: -1, textAddress: -2, orcAddress: -3 });
const patch: RegisteredKernelPatch = {
  ...{ id: 'a', name: 'fix', state: 'applied', forced: false, appliedAt: '' },
  memory: { address: -4096, sizeBytes: 4096 },
  text: { address: -4096, sizeBytes: 64 },
  ehFrame: undefined,
  functions: [fn('vmlinux', 'f'), fn('ext4', 'g'), fn('xfs', 'h')],
  modules: [place('ext4'), place('xfs')],
  objects: [
    { name: 'ext4', buildId: '01', functions: ['g'] },
    { name: 'xfs', buildId: '02', functions: ['h'] },
    { name: 'btrfs', buildId: '03', functions: ['i'] },
  ],
};
const transition = { patchId: 'a', begunAs: 'patch', direction: 'patch', switchedValue: 1 } as const;
const registry = (more: Partial<KernelRegistry> = {}): KernelRegistry => ({
  ...{ patches: [patch, { ...patch, id: 'b' }], transition: undefined, serial: 1 },
  ...more,
});

describe('the modules of a kernel patch', () => {
  it('are pending as long as the patch was not brought to them', () => {
    expect(pendingModules(patch).map(({ name }) => name)).toEqual(['btrfs']);
    const { objects: _, ...old } = patch;
    expect(pendingModules(old)).toEqual([]);
  });

  it('are pending again when they have gone, of that patch alone', () => {
    const [first, second] = withoutLeftModules(registry(), [{ patch, object: 'ext4' }]).patches;
    expect(first?.functions.map(({ name }) => name)).toEqual(['f', 'h']);
    expect(first && pendingModules(first).map(({ name }) => name)).toEqual(['ext4', 'btrfs']);
    expect(second?.functions).toHaveLength(3);
  });

  it('end a transition that was for them alone, and no other', () => {
    const left = [{ patch, object: 'ext4' }];
    const transitionAfter = (objects?: readonly string[]) =>
      withoutLeftModules(registry({ transition: { ...transition, ...(objects && { objects }) } }), left)
        .transition;
    expect(transitionAfter(['ext4'])).toBeUndefined();
    expect(transitionAfter(['ext4', 'xfs'])).toBeDefined();
    expect(transitionAfter()).toBeDefined();
  });

  it('can have a transition of their own', () => {
    const { functions, modules } = restrictToModules(patch, ['xfs']);
    expect(functions.map(({ name }) => name)).toEqual(['h']);
    expect(modules.map(({ name }) => name)).toEqual(['xfs']);
    expect(restrictToModules(patch, undefined)).toBe(patch);
  });
});
