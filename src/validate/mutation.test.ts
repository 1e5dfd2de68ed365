import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { mutationsOf, runMutations } from '../../test/support/mutations.js';

/** One change at a time in files of every kind; kernel modules have theirs in `test/live/validate-kernel.test.ts`. */

const folder = mkdtempSync(join(tmpdir(), 'livegraft-mutation-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const LIBRARIES = '/usr/lib/x86_64-linux-gnu';

const SOURCE = `
  #include <alloca.h>
  long other(long, ...);
  __attribute__((noinline)) static long many(long a, long b, long c, long d, long e, long f, long g, long h) {
    long kept[6] = { other(a), other(b), other(c), other(d), other(e), other(f) };
    return g > h ? other(g, kept) + kept[a & 3] * b + c * d : e + f;
  }
  long varying(long n) { char *p = alloca(n); other((long)p); return p[n / 2] + many(1, n, 3, n, 5, 6, 7, n); }
  long aligned(long n) { _Alignas(64) char p[128]; other((long)p); return other(n) + p[3]; }
  long chosen(long n) {
    switch (n) { case 0: return other(1); case 1: return many(n, 2, 3, 4, 5, 6, 7, 8); case 2: return other(n) - 2;
      case 3: return other(7) * 2; case 4: return other(n, n) + 1; case 5: return varying(5) - 9; }
    return aligned(n);
  }
`;

function compile(name: string, ...flags: string[]): string {
  const [source, object] = [join(folder, 'a.c'), join(folder, name)];
  writeFileSync(source, SOURCE);
  const { status, stderr } = spawnSync('gcc', ['-c', ...flags, '-o', object, source], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return object;
}

/** With how many of each kind are tried: large files take long, and have much of the same. */
const FILES: readonly { readonly path: () => string; readonly count: number }[] = [
  { path: () => compile('optimized.o', '-O2', '-ffunction-sections'), count: 300 },
  { path: () => compile('framed.o', '-O1', '-fno-omit-frame-pointer'), count: 300 },
  { path: () => `${LIBRARIES}/libz.so.1`, count: 300 },
  { path: () => `${LIBRARIES}/libm.so.6`, count: 40 },
  { path: () => '/usr/bin/bash', count: 12 },
  { path: () => `${LIBRARIES}/libstdc++.so.6`, count: 6 },
];

describe('mutations of real files', () => {
  it.each(FILES)('are noticed (%#)', ({ path, count }) => {
    const file = path();
    expect(existsSync(file)).toBe(true);
    const bytes = new Uint8Array(readFileSync(file));
    for (const { what, mutations } of mutationsOf(bytes, file)) {
      const { tried, missed } = runMutations(bytes, file, mutations, { seed: 1, count });
      const share = 1 - missed.length / tried;
      process.stdout.write(`${file}, ${what}: ${tried} tried, ${(share * 100).toFixed(2)} % noticed\n`);
      for (const mutation of missed) process.stdout.write(`  missed: ${mutation}\n`);
      expect(tried).toBe(Math.min(count, mutations.length));
      expect(share).toBeGreaterThanOrEqual(0.995);
    }
  });
});
