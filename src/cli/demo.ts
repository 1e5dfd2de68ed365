import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { LivegraftError } from '../base/errors.js';

/** Runs the checkout's demo; the published package does not carry it. Returns its exit code. */
export async function runDemo(): Promise<number> {
  // From dist/ in a checkout.
  const script = fileURLToPath(new URL('../scripts/run.mjs', import.meta.url));
  if (!existsSync(script)) {
    throw new LivegraftError('no-checkout', 'the demo is part of the source checkout', {
      remedy: 'clone the repository and run: npm run demo',
    });
  }
  return spawnSync(process.execPath, [script, 'demo'], { stdio: 'inherit' }).status ?? 1;
}
