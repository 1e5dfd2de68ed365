import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';

describe('docs/build.md', () => {
  it('explains every refusal of the builder, and no other', () => {
    const folder = new URL('./', import.meta.url);
    const sources = readdirSync(folder).filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts'));
    const text = [
      ...sources.map((name) => new URL(name, folder)),
      new URL('../cli/commands/build.ts', folder),
    ]
      .map((url) => readFileSync(url, 'utf8'))
      .join('\n');
    const codes = [...text.matchAll(/(?:new LivegraftError|\brefuse)\(\s*'([a-z-]+)'/g)].map(
      (match) => match[1],
    );
    const explained = readFileSync(new URL('../../docs/build.md', folder), 'utf8')
      .split('\n')
      .filter((line) => line.startsWith('| `'))
      .flatMap((line) =>
        [...(line.split('|')[1] as string).matchAll(/`([a-z-]+)`/g)].map((match) => match[1]),
      );
    expect(explained.sort()).toEqual([...new Set(codes)].sort());
  });
});
