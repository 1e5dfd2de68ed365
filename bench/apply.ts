import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { livegraft, pause, ROOT, startTarget } from '../test/support/live.js';

/**
 * `npm run -s bench:apply -- --json`: pauses and times of whole applies. `longestPauseMs` is the largest gap that a
 * running thread of the target saw between two of its own clock readings (for ticking threads: its largest lateness),
 * beside the same over an equal time with nothing applied.
 */
const APPLIES = Number(process.env.APPLIES ?? 20);
const SCENARIOS = [
  { threads: 1, busy: 1, tick: 0, block: 0 },
  { threads: 16, busy: 1, tick: 0, block: 15 },
  { threads: 64, busy: 1, tick: 0, block: 63 },
  { threads: 256, busy: 1, tick: 0, block: 255 },
  { threads: 64, busy: 0, tick: 64, block: 0 },
];

interface Spread {
  readonly median: number;
  readonly max: number;
}

interface Row {
  readonly threads: number;
  readonly busy: number;
  readonly tick: number;
  readonly model: 'hybrid';
  readonly applies: number;
  readonly longestPauseMs: Spread;
  readonly longestPauseIdleMs: Spread;
  readonly wallMs: Spread;
  readonly transitionMs: Spread;
}

function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const round = (value: number | undefined) => Math.round((value ?? 0) * 1000) / 1000;
  return { median: round(sorted[Math.floor(sorted.length / 2)]), max: round(sorted[sorted.length - 1]) };
}

function compileTarget(folder: string): { program: string; patch: string } {
  const source = join(ROOT, 'bench/target.c');
  const gcc = (...args: string[]) => {
    const { status, stderr } = spawnSync('gcc', ['-O2', '-g', ...args], { cwd: folder, encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
  };
  const [program, patch] = [join(folder, 'target'), join(folder, 'fix.lgp')];
  const sections = ['-ffunction-sections', '-fdata-sections', '-c'];
  gcc('-Wl,--build-id', '-o', program, source, '-lpthread');
  gcc(...sections, '-o', 'orig.o', source);
  gcc(...sections, '-DPATCHED', '-o', 'patched.o', source);
  const objects = ['--orig', join(folder, 'orig.o'), '--patched', join(folder, 'patched.o')];
  const built = livegraft('build', ...objects, '--target', program, '-o', patch);
  if (built.code !== 0) throw new Error(built.stderr);
  return { program, patch };
}

/** The largest gap of all threads since the last reset, in ms; resets. */
function takeGap(shared: string): number {
  const bytes = readFileSync(shared);
  let largest = 0n;
  for (let at = 8; at < bytes.length; at += 8) {
    const gap = bytes.readBigUInt64LE(at);
    if (gap > largest) largest = gap;
  }
  const epoch = Buffer.alloc(8);
  epoch.writeBigUInt64LE(bytes.readBigUInt64LE(0) + 1n);
  writeFileSync(shared, epoch, { flag: 'r+' });
  return Number(largest) / 1e6;
}

async function measure(
  scenario: (typeof SCENARIOS)[number],
  built: { program: string; patch: string },
): Promise<Row> {
  const shared = join('/dev/shm', `livegraft-bench-${process.pid}`);
  const counts = [scenario.busy, scenario.tick, scenario.block].map(String);
  const target = await startTarget(built.program, ...counts, shared, '300');
  const pid = String(target.pid);
  const [pauses, idle, walls, transitions]: [number[], number[], number[], number[]] = [[], [], [], []];
  try {
    for (let i = 0; i < APPLIES; i++) {
      takeGap(shared);
      await pause(20);
      takeGap(shared);
      const start = performance.now();
      const run = livegraft('--json', 'apply', '--pid', pid, built.patch);
      const wall = performance.now() - start;
      pauses.push(takeGap(shared));
      if (run.code !== 0) throw new Error(`apply ended with ${run.code}: ${run.stdout}${run.stderr}`);
      walls.push(wall);
      transitions.push(
        (run.lines[run.lines.length - 1] as { result: { durationMs: number } }).result.durationMs,
      );
      takeGap(shared);
      // The same time, and as much work of another process beside it, without livegraft.
      const until = performance.now() + wall;
      while (performance.now() < until);
      idle.push(takeGap(shared));
      const reverted = livegraft('revert', '--pid', pid);
      if (reverted.code !== 0)
        throw new Error(`revert ended with ${reverted.code}: ${reverted.stdout}${reverted.stderr}`);
    }
  } finally {
    target.stop();
    rmSync(shared, { force: true });
  }
  return {
    threads: scenario.threads,
    busy: scenario.busy,
    tick: scenario.tick,
    model: 'hybrid',
    applies: APPLIES,
    longestPauseMs: spread(pauses),
    longestPauseIdleMs: spread(idle),
    wallMs: spread(walls),
    transitionMs: spread(transitions),
  };
}

const folder = mkdtempSync(join(tmpdir(), 'livegraft-bench-'));
try {
  const built = compileTarget(folder);
  const rows: Row[] = [];
  for (const scenario of SCENARIOS) {
    const row = await measure(scenario, built);
    rows.push(row);
    if (!process.argv.includes('--json')) process.stdout.write(`${JSON.stringify(row)}\n`);
  }
  const machine = {
    cpu: cpus()[0]?.model ?? '?',
    cores: cpus().length,
    kernel: release(),
    node: process.versions.node,
  };
  process.stdout.write(`${JSON.stringify({ machine, rows })}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
