import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const root = fileURLToPath(new URL('../..', import.meta.url));
const read = (path: string) => readFileSync(join(root, path), 'utf8');

/** The codes of errors that the sources make with `new LivegraftError('code', …)`; nobody meets those of the simulated target. */
function codesInSources(): Set<string> {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' });
  const sources = files.filter(
    (file) => file.endsWith('.ts') && !file.endsWith('.test.ts') && !file.startsWith('targets/simulated/'),
  );
  const texts = sources.map((file) => read(join('src', file)));
  const made = texts.flatMap((text) => [...text.matchAll(/new LivegraftError\(\s*'([a-z0-9-]+)'/g)]);
  return new Set(made.map((match) => match[1] as string));
}

it('every error has its code in the manual', () => {
  const manual = read('docs/errors.md') + read('docs/build.md');
  const codes = [...codesInSources()];
  expect(codes.length).toBeGreaterThan(100);
  expect(codes.filter((code) => !manual.includes(`\`${code}\``))).toEqual([]);
});

it('the manual of errors names no code that there is not', () => {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' });
  const all = files.filter((file) => file.endsWith('.ts')).map((file) => read(join('src', file)));
  const cells = [...read('docs/errors.md').matchAll(/^\| ((?:`[a-z0-9-]+` ?)+)\|/gm)];
  const named = cells.flatMap((cell) => [...(cell[1] as string).matchAll(/`([a-z0-9-]+)`/g)]);
  const unknown = named.filter((match) => !all.some((text) => text.includes(`'${match[1]}'`)));
  expect(unknown.map((match) => match[1])).toEqual([]);
});
