import { describe, expect, it } from 'vitest';
import { findLeft, partsOf, pendingObjects, restrictTo, withoutLeft } from './patch-objects.js';
import type { Mapping } from './proc.js';
import type { RegisteredFunction, RegisteredPatch, Registry } from './registry.js';

const BASE = 0x7000_0000;
const ORIGINAL = '5548895e90';
const identity = { kind: 'buildId', hex: 'ab' } as const;

function functionOf(object: string, name: string, old: number, below = ORIGINAL): RegisteredFunction {
  const direct = `e9${name.charCodeAt(0).toString(16).padStart(8, '0')}`;
  const range = { address: old, sizeBytes: 16 };
  const trampoline = { address: 1, sizeBytes: 1, stateReadAt: 0, belowEntry: 1, displaced: [] };
  const site = { address: old, sizeBytes: 5 };
  const redirect = { site, below, choosing: direct, direct, hop: undefined, trampoline };
  return { object, name, old: range, oldParts: [], new: range, newParts: [], redirect };
}

function patchOf(id: string, functions: readonly RegisteredFunction[]): RegisteredPatch {
  const range = { address: 0x1000, sizeBytes: 16 };
  const module = { address: BASE, sizeBytes: 0x4000, file: '08:01 7', mayLeave: true };
  const common = { image: range, code: range, text: range, ehFrame: undefined, symbols: [] };
  return {
    id,
    name: id,
    appliedAt: '',
    state: 'applied',
    forced: false,
    path: '/p.lgp',
    objects: [
      { name: 'lib.so', identity, functions: ['f'], part: { state: 'installed', module, ...common } },
      { name: 'later.so', identity, functions: ['g'] },
    ],
    functions,
  };
}

const registryOf = (...patches: RegisteredPatch[]): Registry => ({
  slots: { kind: 'gsBase', address: 0, sizeBytes: 0 },
  patches,
  transition: undefined,
  retired: [],
});

const mapping = (inode: number, start = BASE): Mapping => ({
  start,
  end: start + 0x1000,
  readable: true,
  writable: false,
  executable: false,
  shared: false,
  fileOffset: 0,
  device: '08:01',
  inode,
  name: '/lib.so',
});

const memoryOf = (text: string) => ({
  read: (_: number, into: Uint8Array) => into.fill(0) && Buffer.from(text, 'hex').copy(into),
});

describe('findLeft', () => {
  const fn = functionOf('lib.so', 'f', BASE + 0x1000);
  const registry = registryOf(patchOf('one', [fn]));
  const patched = memoryOf(fn.redirect.direct);

  it("finds an object whose place is empty, another file's, or its own, loaded anew", () => {
    expect(findLeft(registry, patched, [mapping(7)])).toEqual([]);
    expect(findLeft(registry, patched, [])).toHaveLength(1);
    expect(findLeft(registry, patched, [mapping(8)])).toHaveLength(1);
    expect(findLeft(registry, patched, [mapping(7, BASE + 0x9000)])).toHaveLength(1);
    expect(findLeft(registry, memoryOf(ORIGINAL), [mapping(7)])).toHaveLength(1);
  });

  it('goes by the original, not by what lies below a patch on top of another', () => {
    const upper = functionOf('lib.so', 'g', BASE + 0x1000, fn.redirect.direct);
    const both = registryOf(patchOf('one', [fn]), patchOf('two', [upper]));
    expect(findLeft(both, memoryOf(upper.redirect.direct), [mapping(7)])).toEqual([]);
    expect(findLeft(both, memoryOf(ORIGINAL), [mapping(7)])).toHaveLength(2);
  });

  it('takes original entries for nothing while the patch is in a transition', () => {
    const transition = { patchId: 'one', direction: 'unpatch', model: 'hybrid', phase: 'finishing' } as const;
    expect(findLeft({ ...registry, transition }, memoryOf(ORIGINAL), [mapping(7)])).toEqual([]);
    expect(findLeft({ ...registry, transition }, memoryOf(ORIGINAL), [])).toHaveLength(1);
  });
});

describe('withoutLeft', () => {
  it("makes the object pending, forgets its functions, and keeps its memory as a removed patch's", () => {
    const registry = registryOf(patchOf('one', [functionOf('lib.so', 'f', BASE + 0x1000)]));
    const after = withoutLeft(registry, findLeft(registry, memoryOf(''), []));
    const [patch] = after.patches as [RegisteredPatch];
    expect(patch.functions).toEqual([]);
    expect(partsOf(patch)).toEqual([]);
    expect(pendingObjects(patch).map(({ name }) => name)).toEqual(['lib.so', 'later.so']);
    expect(after.retired).toMatchObject([{ address: 0x1000, inUse: true, displaced: [] }]);
  });
});

describe('restrictTo', () => {
  it('keeps objects, functions and barrier of the objects alone', () => {
    const patch = patchOf('one', [functionOf('lib.so', 'f', BASE), functionOf('later.so', 'g', 2)]);
    expect(restrictTo(patch, undefined)).toBe(patch);
    const later = restrictTo(patch, ['later.so']);
    expect(later.functions.map(({ name }) => name)).toEqual(['g']);
    expect(later.objects.map(({ name }) => name)).toEqual(['later.so']);
  });
});
