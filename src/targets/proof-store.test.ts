import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { LivegraftError } from '../base/errors.js';
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
});
