import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fetchDebianSource } from '../debian-source.js';
import {
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
import { FIXES, type Fix } from './fixes.js';
import { command } from './resp.js';

/**
 * `npm run demo:redis`: Debian's redis is built without some of its own security patches, runs under redis-benchmark,
 * gets each of them as a live patch, loses them and gets them again; each one's own test shows whether it is there. The
 * tree is kept in `.cache/` for the next run.
 */

const MAKE = ['make', '-j2', 'MALLOC=libc', 'BUILD_TLS=no', 'OPTIMIZATION=-O2'] as const;
const PORT = 7391;
/** Requests of one kind (SET, then GET) in one run of redis-benchmark, which is repeated until the work is done. */
const REQUESTS = 100_000;

interface Prepared {
  readonly fix: Fix;
  readonly diff: string;
  readonly patch: string;
}

async function demo(): Promise<void> {
  const folder = join(ROOT, '.cache', 'redis');
  mkdirSync(folder, { recursive: true });
  heading('Fetch and build redis without these security patches of its own');
  const tree = fetchDebianSource('redis', folder);
  const prepared = FIXES.map((fix) => ({
    fix,
    diff: join(tree, 'debian/patches', `${fix.name}.patch`),
    patch: join(folder, `${fix.name}.lgp`),
  })).filter(({ diff }) => existsSync(diff));
  expect(
    prepared.length >= 3,
    `Debian's redis carries fewer than three of ${FIXES.map((f) => f.name).join(', ')}`,
  );
  // The newest first, as they were applied one on the other.
  for (const { fix, diff } of prepared.toReversed()) {
    // A second run finds them left out already; --forward keeps patch from putting them in again.
    const dry = ['-R', '-p1', '--forward', '--dry-run', '-r', '-', '-i', diff];
    if (spawnSync('patch', dry, { cwd: tree }).status === 0)
      runQuietly(
        'patch',
        dry.filter((a) => a !== '--dry-run'),
        tree,
      );
    say(`   without ${fix.name}: ${fix.what}`);
  }
  runQuietly(MAKE[0], MAKE.slice(1), tree);
  const server = join(tree, 'src/redis-server');

  heading('Build a live patch from each');
  for (const { diff, patch } of prepared) {
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
  }

  let pid: number | undefined;
  const stopFile = join(folder, 'stop');
  try {
    heading('Start it');
    pid = await startServer(folder, server);
    say(`   process ${pid}, port ${PORT}`);
    for (const { fix, diff } of prepared) {
      expect(!(await fix.isFixed(PORT, diff)), `${fix.name} is not needed: the bug does not show`);
    }

    heading('Put redis-benchmark on it');
    const benchmark = startBenchmark(folder, join(tree, 'src/redis-benchmark'), stopFile);
    await pause(500);

    await applyAll(prepared, pid, 'Apply each fix while it serves');
    livegraft('status', '--pid', String(pid));

    heading('Revert them, the newest first');
    for (const { fix, diff } of prepared.toReversed()) {
      expect(livegraft('revert', '--pid', String(pid)) === 0, 'a patch was not reverted');
      expect(!(await fix.isFixed(PORT, diff)), `${fix.name} is still there`);
    }

    await applyAll(prepared, pid, 'Apply them again');

    heading('Summary');
    writeFileSync(stopFile, '');
    await summarise(benchmark, prepared.length);
  } finally {
    writeFileSync(stopFile, '');
    endProcess(pid);
  }
}

async function applyAll(prepared: readonly Prepared[], pid: number, title: string): Promise<void> {
  heading(title);
  for (const { fix, diff, patch } of prepared) {
    expect(livegraft('apply', '--pid', String(pid), patch) === 0, `${fix.name} was not applied`);
    expect(await fix.isFixed(PORT, diff), `${fix.name} was applied and the bug is still there`);
  }
}

/** Starts the server and returns its process id once it answers. */
async function startServer(folder: string, server: string): Promise<number> {
  const options = [
    '--port',
    String(PORT),
    '--save',
    '',
    '--bind',
    '127.0.0.1',
    '--enable-debug-command',
    'local',
  ];
  await startDetached(folder, 'server', [server, ...options]);
  for (let i = 0; i < 200; i++) {
    try {
      const info = await command(PORT, 'INFO', 'server');
      const pid = Number(/process_id:(\d+)/.exec(info)?.[1]);
      if (pid > 0) return pid;
    } catch {
      // Not yet.
    }
    await pause(50);
  }
  throw new Error('redis did not start');
}

/** Runs redis-benchmark over and over until the stop file is there; it ends at once when a request fails. */
function startBenchmark(folder: string, program: string, stopFile: string): { readonly report: string } {
  const report = join(folder, 'benchmark.out');
  rmSync(stopFile, { force: true });
  const once = `'${program}' -p ${PORT} -c 20 -n ${REQUESTS} -t set,get --csv`;
  const loop = `while [ ! -e '${stopFile}' ]; do ${once} || { echo failed; exit 1; }; done; echo finished`;
  spawnSync('sh', ['-c', `exec setsid -f sh -c "$0" > '${report}' 2>&1`, loop], { stdio: 'ignore' });
  return { report };
}

/** Waits for the last run to end, and counts on both sides. */
async function summarise({ report }: { readonly report: string }, patches: number): Promise<void> {
  let text = '';
  for (let i = 0; i < 1200 && !/^(finished|failed)$/m.test(text); i++) {
    await pause(100);
    text = readFileSync(report, 'utf8');
  }
  expect(/^finished$/m.test(text) && !/error/i.test(text), `redis-benchmark saw an error:\n${text}`);
  const runs = text.match(/^"(SET|GET)",/gm)?.length ?? 0;
  const sent = runs * REQUESTS;
  const stats = await command(PORT, 'INFO', 'commandstats');
  const count = (name: string, field: string) =>
    Number(new RegExp(`^cmdstat_${name}:.*\\b${field}=(\\d+)`, 'm').exec(stats)?.[1] ?? 0);
  const failed = ['set', 'get'].reduce(
    (sum, name) => sum + count(name, 'failed_calls') + count(name, 'rejected_calls'),
    0,
  );
  say(`   redis-benchmark: ${runs / 2} runs, requests sent ${sent}, answered ${sent}, failed 0`);
  say(
    `   the server: SET and GET called ${count('set', 'calls') + count('get', 'calls')} times, failed or rejected ${failed}`,
  );
  say(`   ${patches} security patches applied, reverted and applied again, each shown by its own test`);
  expect(sent > 0 && failed === 0, 'requests failed');
  expect(
    count('set', 'calls') + count('get', 'calls') >= sent,
    'the server saw fewer requests than were sent',
  );
}

try {
  await demo();
} catch (error) {
  process.stderr.write(`${(error as Error).message}\n`);
  process.exitCode = 1;
}
