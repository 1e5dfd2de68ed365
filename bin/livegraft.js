#!/usr/bin/env -S node --single-threaded
// Without helper threads of V8: they would compete with the target for its processors, for milliseconds at a time.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const bundle = new URL('../dist/main.js', import.meta.url);
if (!existsSync(fileURLToPath(bundle))) {
  process.stderr.write('livegraft: not built yet\n  what to do: npm ci && npm run build\n');
  process.exit(1);
}
const { run } = await import(bundle.href);
await run();
