#!/usr/bin/env node
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const bundle = new URL('../dist/main.js', import.meta.url);
if (!existsSync(fileURLToPath(bundle))) {
  process.stderr.write('livegraft: not built yet\n  what to do: npm ci && npm run build\n');
  process.exit(1);
}
const { run } = await import(bundle.href);
await run();
