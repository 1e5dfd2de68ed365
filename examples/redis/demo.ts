import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fetchDebianSource } from '../debian-source.js';
import {
  ask,
  endProcess,
  expect,
  heading,
  livegraft,
  pause,
  ROOT,
  runQuietly,
  say,
  startDetached,
} from '../support.js';

/**
 * `npm run demo:redis`: Debian's redis is built without some of its own security patches, runs under redis-benchmark,
 * gets each of them as a live patch, and is reverted again. The tree is kept in `.cache/` for the next run.
 */

/** Patches of the source package that are left out of the build and applied live; each touches other functions. */
const LEFT_OUT = ['0006-CVE-2025-32023', 'CVE-2026-23631', 'CVE-2026-66373', 'CVE-2026-92925'] as const;

const MAKE = ['make', '-j2', 'MALLOC=libc', 'BUILD_TLS=no', 'OPTIMIZATION=-O2'] as const;
const PORT = 7391;

async function demo(): Promise<void> {
  const folder = join(ROOT, '.cache', 'redis');
  mkdirSync(folder, { recursive: true });
  heading('Fetch and build redis without these patches of its own');
  const tree = fetchDebianSource('redis', folder);
  const diffs = LEFT_OUT.map((name) => join(tree, 'debian/patches', `${name}.patch`)).filter((diff) =>
    existsSync(diff),
  );
  expect(diffs.length >= 3, `Debian's redis no longer carries three of ${LEFT_OUT.join(', ')}`);
  for (const diff of diffs) {
    // A second run finds them left out already.
    const dry = ['-R', '-p1', '--batch', '--dry-run', '-i', diff];
    if (spawnSync('patch', dry, { cwd: tree }).status === 0)
      runQuietly(
        'patch',
        dry.filter((a) => a !== '--dry-run'),
        tree,
      );
    say(`   without ${diff.replace(/^.*\//, '')}`);
  }
  runQuietly(MAKE[0], MAKE.slice(1), tree);
  const server = join(tree, 'src/redis-server');

  let pid: number | undefined;
  try {
    heading('Start it, and redis-benchmark on it');
    await startDetached(folder, 'server', [
      server,
      '--port',
      String(PORT),
      '--save',
      '',
      '--bind',
      '127.0.0.1',
    ]);
    for (let i = 0; i < 100 && !(await isUp()); i++) await pause(50);
    pid = Number(
      /process_id:(\d+)/.exec(
        runQuietly(join(tree, 'src/redis-cli'), ['-p', String(PORT), 'info', 'server'], tree),
      )?.[1],
    );
    expect(pid > 0, 'redis did not start');
    const benchmark = join(folder, 'benchmark.out');
    const command = `exec setsid -f '${join(tree, 'src/redis-benchmark')}' -p ${PORT} -c 20 -n 800000 -t set,get --csv > '${benchmark}' 2>&1`;
    spawnSync('sh', ['-c', command], { stdio: 'ignore' });
    await pause(500);

    heading('Apply each fix while it serves');
    for (const diff of diffs) {
      const patch = join(folder, `${diff.replace(/^.*\//, '').replace(/\.patch$/, '')}.lgp`);
      const built = livegraft(
        'build',
        '--source',
        tree,
        '--diff',
        diff,
        '--target',
        server,
        '-o',
        patch,
        '--',
        ...MAKE,
      );
      expect(built === 0, `${diff} was not built`);
      expect(livegraft('apply', '--pid', String(pid), patch) === 0, `${diff} was not applied`);
      expect((await ask(PORT, 'PING')) === '+PONG\r', 'redis does not answer');
    }
    livegraft('status', '--pid', String(pid));

    heading('Revert them, the newest first');
    for (let i = 0; i < diffs.length; i++) {
      expect(livegraft('revert', '--pid', String(pid)) === 0, 'a patch was not reverted');
    }
    expect((await ask(PORT, 'PING')) === '+PONG\r', 'redis does not answer');

    heading('Wait for redis-benchmark to end, and count');
    let report = '';
    for (let i = 0; i < 1200 && !/"GET"/.test(report); i++) {
      await pause(100);
      report = readFileSync(benchmark, 'utf8');
    }
    say(report.trimEnd());
    expect(/"SET"/.test(report) && /"GET"/.test(report), 'redis-benchmark did not finish');
    expect(!/[Ee]rror/.test(report), 'redis-benchmark saw an error');
    say('   every request was answered; redis-benchmark would have stopped at the first error');
  } finally {
    endProcess(pid);
  }
}

async function isUp(): Promise<boolean> {
  try {
    return (await ask(PORT, 'PING')).startsWith('+PONG');
  } catch {
    return false;
  }
}

try {
  await demo();
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exitCode = 1;
}
