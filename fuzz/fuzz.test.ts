import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { damage, randomOf } from './damage.js';
import { tryBytes } from './support.js';
import { TARGETS } from './targets.js';

const FIXTURES = fileURLToPath(new URL('./fixtures', import.meta.url));

describe.each(TARGETS.map((target) => [target.name, target] as const))('%s', (name, target) => {
  it('reads its seeds', async () => {
    for (const seed of await target.seeds()) expect(await tryBytes(target, seed)).toBe('read');
  });

  it('reads or refuses what is damaged', async () => {
    const random = randomOf(1);
    const seeds = await target.seeds();
    for (let i = 0; i < target.cases; i++) {
      const bytes = damage(seeds[random(seeds.length)] as Uint8Array, random);
      try {
        await tryBytes(target, bytes);
      } catch (cause) {
        const text = Buffer.from(bytes).toString('base64');
        throw new Error(
          `case ${i}: ${(cause as Error).message}; the bytes in base64: ${text.slice(0, 100_000)}`,
          {
            cause,
          },
        );
      }
    }
  });

  it('does no longer fail where it did', async () => {
    const fixtures = existsSync(FIXTURES) ? readdirSync(FIXTURES) : [];
    for (const file of fixtures.filter((each) => each.startsWith(`${name}-`)))
      await tryBytes(target, new Uint8Array(readFileSync(join(FIXTURES, file))));
  });
});
