import { cpSync } from 'node:fs';
import { join } from 'node:path';
import {
  ask,
  endProcess,
  expect,
  heading,
  livegraft,
  makeWorkFolder,
  pause,
  ROOT,
  removeFolder,
  runQuietly,
  say,
  startDetached,
  startLoad,
} from '../support.js';

/** `npm run demo`: a server with a bug is fixed while it serves, then unfixed, then fixed again. */

interface LoadCounts {
  readonly sent: number;
  readonly answered: number;
  readonly failed: number;
  readonly longestMs: number;
}

const EXPLOIT_KEY = 'victim';
const EXPLOIT_VALUE = 'x'.repeat(64);

/** Stores a value of the very length that loses its end, and reads it back. */
async function leaks(port: number): Promise<boolean> {
  const stored = await ask(port, `SET ${EXPLOIT_KEY} ${EXPLOIT_VALUE}`);
  const read = await ask(port, `GET ${EXPLOIT_KEY}`);
  say(`   SET ${EXPLOIT_KEY} ${'x'.repeat(8)}… (64 bytes) -> ${stored}`);
  say(`   GET ${EXPLOIT_KEY} -> ${read.length > 80 ? `${read.slice(0, 80)}…` : read}`);
  // Leave no over-long value behind for the next look.
  await ask(port, `SET ${EXPLOIT_KEY} short`);
  return read.includes('SECRET');
}

async function demo(): Promise<void> {
  const folder = makeWorkFolder();
  let pid: number | undefined;
  let load: ReturnType<typeof startLoad> | undefined;
  const startedAt = performance.now();
  try {
    heading('Build the server, with its bug, and start it with 8 threads');
    const tree = join(folder, 'kvserver');
    cpSync(join(ROOT, 'examples/kvserver/src'), tree, { recursive: true });
    runQuietly('make', [], tree);
    const ready = await startDetached(folder, 'server', [join(tree, 'kvserver'), '8', '180']);
    const [serverPid, port] = ready.split(' ').map(Number) as [number, number];
    pid = serverPid;
    say(`   process ${pid}, port ${port}`);

    heading('Put load on it');
    load = startLoad([process.execPath, join(ROOT, 'examples/kvserver/load.mjs'), String(port), '8']);
    await pause(1000);
    expect(await leaks(port), 'the bug does not show');
    say("   the bug: another field of the server's memory is read out");

    heading('Build a live patch from the fix, and apply it');
    const patch = join(folder, 'fix.lgp');
    const diff = join(ROOT, 'examples/kvserver/fix.patch');
    const target = join(tree, 'kvserver');
    expect(
      livegraft('build', '--source', tree, '--diff', diff, '--target', target, '-o', patch, '--', 'make') ===
        0,
      'the patch was not built',
    );
    const applyAt = performance.now();
    expect(livegraft('apply', '--pid', String(pid), patch) === 0, 'the patch was not applied');
    const applyMs = performance.now() - applyAt;
    expect(!(await leaks(port)), 'the bug is still there');
    const refused = await ask(port, 'REFUSED');
    say(`   the bug is gone; values refused by the new code: ${refused}`);
    expect(refused === '1', 'the new counter does not count');
    livegraft('status', '--pid', String(pid));

    heading('Revert it');
    expect(livegraft('revert', '--pid', String(pid)) === 0, 'the patch was not reverted');
    expect(await leaks(port), 'the old code is not back');

    heading('Apply it again');
    expect(livegraft('apply', '--pid', String(pid), patch) === 0, 'the patch was not applied again');
    expect(!(await leaks(port)), 'the bug is back');

    heading('Summary');
    const counts = (await load.stop()) as LoadCounts;
    load = undefined;
    say(`   requests sent ${counts.sent}, answered ${counts.answered}, failed ${counts.failed}`);
    say(
      `   longest answer ${counts.longestMs.toFixed(1)} ms; the first apply took ${applyMs.toFixed(0)} ms from start to exit`,
    );
    say(`   whole demo ${((performance.now() - startedAt) / 1000).toFixed(1)} s`);
    expect(counts.failed === 0 && counts.sent === counts.answered, 'requests failed');
    expect(counts.answered > 1000, 'there was hardly any load');
  } finally {
    // A demo that failed in the middle leaves nothing running.
    await load?.stop().catch(() => {});
    endProcess(pid);
    removeFolder(folder);
  }
}

try {
  await demo();
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exitCode = 1;
}
