import { describe, expect, it } from 'vitest';
import { findFreeRange } from './placement.js';
import { parseMappings } from './proc.js';

const maps = (text: string) => parseMappings(text.trim().replace(/^\s+/gm, ''));

describe('findFreeRange', () => {
  it('chooses the page run right below a position-independent executable', () => {
    const mappings = maps(`
      555555554000-555555560000 r-xp 00000000 08:01 11 /usr/bin/thing
      555555560000-555555581000 rw-p 00000000 00:00 0 [heap]
      7ffff7c00000-7ffff7e00000 r-xp 00000000 08:01 12 /lib/libc.so.6
      7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]`);
    const at = findFreeRange(mappings, 0x3000, { start: 0x555555554000, end: 0x555555560000 });
    expect(at + 0x3000).toBeLessThanOrEqual(0x555555554000);
    expect(0x555555554000 - at).toBeLessThan(0x10000);
  });

  it('finds room between crowded libraries without touching a neighbour', () => {
    const mappings = maps(`
      7ffff7a00000-7ffff7b00000 r-xp 00000000 08:01 1 /lib/a.so
      7ffff7b10000-7ffff7c00000 r-xp 00000000 08:01 2 /lib/b.so
      7ffff7c00000-7ffff7e00000 r-xp 00000000 08:01 3 /lib/c.so`);
    const size = 0x4000;
    const at = findFreeRange(mappings, size, { start: 0x7ffff7b10000, end: 0x7ffff7c00000 });
    for (const m of mappings) expect(at + size <= m.start || at >= m.end).toBe(true);
  });

  it('keeps away from a heap that grows and a stack that grows', () => {
    const mappings = maps(`
      00400000-00500000 r-xp 00000000 08:01 1 /usr/bin/thing
      00500000-00600000 rw-p 00000000 00:00 0 [heap]`);
    const at = findFreeRange(mappings, 0x400000, { start: 0x400000, end: 0x500000 });
    expect(at).toBeGreaterThan(0x600000 + 0x1000000);
  });

  it('says so when nothing within reach is free', () => {
    const mappings = maps(`
      10000-100000000 rw-p 00000000 00:00 0
      100000000-100100000 r-xp 00000000 08:01 1 /usr/bin/thing
      100100000-200000000 rw-p 00000000 00:00 0`);
    expect(() => findFreeRange(mappings, 0x1000, { start: 0x100000000, end: 0x100100000 })).toThrow(
      /no 4096 bytes of free address space within 2 GiB/,
    );
  });
});
