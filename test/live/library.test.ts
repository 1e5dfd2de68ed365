import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { ROOT } from '../support/live.js';

/** The example of docs/library.md, checked and run as a user of the package would. */
const folder = mkdtempSync(join(tmpdir(), 'livegraft-library-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('the example in the documentation compiles against the types and runs', () => {
  const text = readFileSync(join(ROOT, 'docs/library.md'), 'utf8');
  const example = /```ts\n([\s\S]*?)```/.exec(text)?.[1];
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(ROOT, join(folder, 'node_modules/livegraft'));
  symlinkSync(join(ROOT, 'node_modules/@types'), join(folder, 'node_modules/@types'));
  writeFileSync(join(folder, 'package.json'), '{"type": "module"}');
  writeFileSync(join(folder, 'example.ts'), example ?? '');
  const options = {
    compilerOptions: { module: 'NodeNext', target: 'ES2023', strict: true, types: ['node'], outDir: 'out' },
    files: ['example.ts'],
  };
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(options));
  const run = (...args: string[]) => spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8' });
  const compiled = run(join(ROOT, 'node_modules/typescript7/bin/tsc'), '-p', '.');
  expect([compiled.stdout, compiled.stderr, compiled.status]).toEqual(['', '', 0]);
  const { stdout, stderr } = run('out/example.js', '/usr/lib/x86_64-linux-gnu/libz.so.1');
  expect(stderr).toBe('');
  expect(stdout).toMatch(/^dwarf: \d{5} proven$/m);
  expect(stdout).toContain('ten bytes, offset 0:');
});
