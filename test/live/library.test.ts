import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { ROOT } from '../support/live.js';

/** The example of docs/library.md, checked and run as a user of the package would. */
const folder = mkdtempSync(join(tmpdir(), 'livegraft-library-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('the examples in the documentation compile against the types and run', () => {
  const text = readFileSync(join(ROOT, 'docs/library.md'), 'utf8');
  const examples = [...text.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code ?? '');
  expect(examples).toHaveLength(2);
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(ROOT, join(folder, 'node_modules/livegraft'));
  symlinkSync(join(ROOT, 'node_modules/@types'), join(folder, 'node_modules/@types'));
  writeFileSync(join(folder, 'package.json'), '{"type": "module"}');
  for (const [i, code] of examples.entries()) writeFileSync(join(folder, `example${i}.ts`), code);
  const options = {
    compilerOptions: { module: 'NodeNext', target: 'ES2023', strict: true, types: ['node'], outDir: 'out' },
    files: examples.map((_, i) => `example${i}.ts`),
  };
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(options));
  const env = { ...process.env, XDG_CACHE_HOME: join(folder, 'cache') };
  const run = (...args: string[]) =>
    spawnSync(process.execPath, args, { cwd: folder, env, encoding: 'utf8' });
  const compiled = run(join(ROOT, 'node_modules/typescript7/bin/tsc'), '-p', '.');
  expect([compiled.stdout, compiled.stderr, compiled.status]).toEqual(['', '', 0]);
  const library = '/usr/lib/x86_64-linux-gnu/libz.so.1';
  const bytes = run('out/example0.js', library);
  expect(bytes.stderr).toBe('');
  expect(bytes.stdout).toMatch(/^dwarf: \d{5} proven$/m);
  expect(bytes.stdout).toContain('ten bytes, offset 0:');
  const files = run('out/example1.js', library, join(folder, 'package.json'));
  expect(files.stderr).toBe('');
  expect(files.stdout).toMatch(/libz.*: \d+ findings, 0 disproved, proof kept, found: true/);
  expect(files.stdout).toContain('package.json: malformed');
  const [log] = JSON.parse(readFileSync(join(folder, 'findings.sarif'), 'utf8')).runs;
  expect(log.invocations[0].executionSuccessful).toBe(false);
});
