import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { LivegraftError } from '../base/errors.js';
import { parseElf } from '../elf/reader.js';
import { encodeProof } from '../validate/proof.js';
import { validateElf } from '../validate/validate-file.js';
import { ProofStore } from './proof-store.js';

const roots: string[] = [];

function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-proofs-'));
  roots.push(folder);
  return folder;
}

afterEach(() => {
  for (const folder of roots.splice(0)) rmSync(folder, { recursive: true });
});

describe('the store of proofs', () => {
  it('makes its folder, and those above it', () => {
    const folder = join(temporaryFolder(), 'cache', 'livegraft', 'proofs');
    const store = new ProofStore(folder);
    expect(store.isEmpty).toBe(true);
    store.keep('abcd', new Uint8Array([1]));
    store.keep('abce', new Uint8Array([2]));
    expect(store.isEmpty).toBe(false);
  });

  it('is not in the working folder, also with an empty HOME', () => {
    const { HOME, XDG_CACHE_HOME } = process.env;
    try {
      process.env.HOME = '';
      delete process.env.XDG_CACHE_HOME;
      expect(new ProofStore().folder).toMatch(/^\/.+\/\.cache\/livegraft\/proofs$/);
    } finally {
      process.env.HOME = HOME;
      if (XDG_CACHE_HOME !== undefined) process.env.XDG_CACHE_HOME = XDG_CACHE_HOME;
    }
  });

  it.each([
    ['a file', '/dev/null/livegraft/proofs'],
    ['a folder that takes no new ones', '/proc/livegraft/proofs'],
  ])('says that it can not keep a proof below %s', (_, folder) => {
    const keep = () => new ProofStore(folder).keep('abcd', new Uint8Array([1]));
    expect(keep).toThrow(LivegraftError);
    expect(keep).toThrow(expect.objectContaining({ code: 'proof-not-kept' }));
  });

  it('leaves what is no build-id out of its paths', () => {
    const folder = join(temporaryFolder(), 'proofs');
    new ProofStore(folder).keep('../../abcd', new Uint8Array([1]));
    expect(existsSync(folder)).toBe(false);
    expect(new ProofStore(folder).find('../../abcd')).toBeUndefined();
  });

  it('never shows half of a proof while several processes write it', async () => {
    const library = '/usr/lib/x86_64-linux-gnu/libz.so.1';
    const result = validateElf(parseElf(readFileSync(library), library), { architecture: x86_64 });
    const { buildId = '' } = result;
    const proof = encodeProof(result, 'dwarf') ?? new Uint8Array();
    const root = temporaryFolder();
    const [folder, bytes] = [join(root, 'proofs'), join(root, 'bytes')];
    writeFileSync(bytes, proof);
    const writer = `
      import { readFileSync } from 'node:fs';
      import { ProofStore } from ${JSON.stringify(new URL('./proof-store.ts', import.meta.url).href)};
      const proof = readFileSync(${JSON.stringify(bytes)});
      for (let i = 0; i < 400; i++) new ProofStore(${JSON.stringify(folder)}).keep('${buildId}', proof);
    `;
    const args = ['--import', 'tsx', '--input-type=module', '-e', writer];
    const ends = Array.from({ length: 3 }, () =>
      once(spawn(process.execPath, args, { stdio: 'inherit' }), 'exit'),
    );
    let isWriting = true;
    const codes = Promise.all(ends).then((all) => {
      isWriting = false;
      return all.map(([code]) => code);
    });
    const store = new ProofStore(folder);
    let found = 0;
    while (isWriting) {
      const isThere = store.find(buildId) !== undefined;
      // Once there is one, there always is, and whole.
      if (found > 0) expect(isThere).toBe(true);
      if (isThere) found++;
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(await codes).toEqual([0, 0, 0]);
    expect(found).toBeGreaterThan(100);
    expect(store.find(buildId)?.verdictAt(result.program.space.regions[1]?.address ?? 0)).toBeDefined();
    expect(readdirSync(folder)).toHaveLength(1);
  });
});
