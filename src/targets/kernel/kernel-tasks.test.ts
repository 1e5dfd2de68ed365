import { expect, it } from 'vitest';
import { findStateField } from './kernel-tasks.js';

const place = (offset: number) => ({ offset, sizeBytes: 4 });
const layoutOf = (patchState: number | undefined, padding: number | undefined) => ({
  find: () => (patchState === undefined ? undefined : place(patchState)),
  findPadding: () => (padding === undefined ? undefined : place(padding)),
});

it.each([
  ['padding first for a new transition', layoutOf(100, 20), undefined, 20],
  ['patch_state without padding', layoutOf(100, undefined), undefined, 100],
  ['nothing without either', layoutOf(undefined, undefined), undefined, undefined],
  ['what was recorded', layoutOf(100, 20), { stateOffset: 44 }, 44],
  ['patch_state for a record without a place', layoutOf(100, 20), {}, 100],
  ['padding for one of a kernel without patch_state', layoutOf(undefined, 20), {}, 20],
])('takes %s', (_, layout, record, offset) => {
  expect(findStateField(layout, record)?.offset).toBe(offset);
});
