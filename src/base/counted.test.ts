import { expect, it } from 'vitest';
import { counted } from './counted.js';

it('counts one of them as one', () => {
  expect([0, 1, 2].map((count) => counted(count, 'frame'))).toEqual(['0 frames', '1 frame', '2 frames']);
});
