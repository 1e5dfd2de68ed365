import { spawnSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { largestZstdWindow } from './zstd-window.js';

const input = new Uint8Array(300_000).map((_, i) => (i * i) >> 7);
function pack(...args: string[]): Uint8Array {
  const { status, stdout } = spawnSync('zstd', ['-q', '-c', ...args], { input });
  expect(status).toBe(0);
  return new Uint8Array(stdout);
}

it('tells the window of each frame, as zstd writes them', () => {
  const streamed = pack('--long=24');
  expect(largestZstdWindow(streamed)).toBe(2 ** 24);
  const single = pack(`--stream-size=${input.length}`, '-19');
  expect(largestZstdWindow(single)).toBe(input.length);
  const skippable = Uint8Array.of(0x52, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3);
  expect(largestZstdWindow(Buffer.concat([single, skippable, streamed]))).toBe(2 ** 24);
  expect(largestZstdWindow(Uint8Array.of(0x28, 0xb5))).toBe(0);
});

it('sees a frame that asks for more than there is memory', () => {
  const frame = Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0);
  expect(largestZstdWindow(frame)).toBe(2 ** 40);
});
