import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { livegraft, livegraftUnder, pause, startTarget } from '../test/support/live.js';
import { compileWithPatch, inFolder, medianOf, publish, type Spread, spread } from './support.js';

/**
 * `npm run -s bench:apply -- --json`: pauses and times of whole applies, and what a call costs before, in and after one. `longestPauseMs` is the largest gap that a
 * running thread of the target saw between two of its own clock readings (for ticking threads: its largest lateness),
 * beside the same over an equal time with nothing applied.
 */
const APPLIES = Number(process.env.APPLIES ?? 20);
/** How long calls are counted in each state. */
const CALLS_MS = 2000;
const SCENARIOS = [
  { threads: 1, busy: 1, tick: 0, block: 0 },
  { threads: 16, busy: 1, tick: 0, block: 15 },
  { threads: 64, busy: 1, tick: 0, block: 63 },
  { threads: 256, busy: 1, tick: 0, block: 255 },
  { threads: 64, busy: 0, tick: 64, block: 0 },
];

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
  readonly nsPerCall: CallCosts;
}

/** Medians of ns per call. */
interface CallCosts {
  /** Of a function that nothing redirects. */
  readonly plain: number;
  /** Of a function that begins with a jump. */
  readonly jmp: number;
  /** Redirected, while a transition runs. */
  readonly during: number;
  /** Redirected, after the transition. */
  readonly after: number;
}

/**
 * Keeps this process off the processor of the target's busiest thread: it wakes when livegraft ends, and would be measured
 * itself. Returns what runs a command on all processors again.
 */
function keepOff(pid: number): readonly string[] {
  const threads = readdirSync(`/proc/${pid}/task`).map((tid) => {
    const text = readFileSync(`/proc/${pid}/task/${tid}/stat`, 'latin1');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return { userTicks: Number(fields[11]), processor: fields[36] };
  });
  const busiest = threads.reduce((a, b) => (b.userTicks > a.userTicks ? b : a));
  const all = cpus().map((_, index) => String(index));
  const others = all.filter((processor) => processor !== busiest.processor);
  if (others.length === 0) return [];
  const { status, stderr } = spawnSync('taskset', ['-p', '-c', others.join(','), String(process.pid)], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`taskset: ${stderr}`);
  return ['taskset', '-c', all.join(',')];
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

/** Calls in a loop, in a program of which another thread holds the transition up for as long as is wanted. */
async function measureCalls(folder: string): Promise<CallCosts> {
  const { program, patch } = compileWithPatch(folder, 'calls.c');
  const target = await startTarget(program, '120');
  const pid = String(target.pid);
  const sample = async () => {
    const from = target.output().length;
    await pause(CALLS_MS);
    const lines = [
      ...target
        .output()
        .slice(from)
        .matchAll(/^call (\S+) jmp (\S+)$/gm),
    ];
    return {
      call: medianOf(lines.map((line) => Number(line[1]))),
      jmp: medianOf(lines.map((line) => Number(line[2]))),
    };
  };
  try {
    const plain = await sample();
    const begun = livegraft('apply', '--pid', pid, '--timeout', '0.5', patch);
    if (begun.code !== 3) throw new Error(`the transition was not held up: ${begun.stdout}${begun.stderr}`);
    const during = await sample();
    process.kill(target.pid, 'SIGUSR1');
    const done = livegraft('apply', '--pid', pid, patch);
    if (done.code !== 0) throw new Error(`apply ended with ${done.code}: ${done.stdout}${done.stderr}`);
    const after = await sample();
    return { plain: plain.call, jmp: plain.jmp, during: during.call, after: after.call };
  } finally {
    target.stop();
  }
}

async function measure(
  scenario: (typeof SCENARIOS)[number],
  built: { program: string; patch: string },
  nsPerCall: CallCosts,
): Promise<Row> {
  const shared = join('/dev/shm', `livegraft-bench-${process.pid}`);
  const counts = [scenario.busy, scenario.tick, scenario.block].map(String);
  const target = await startTarget(built.program, ...counts, shared, '300');
  const pid = String(target.pid);
  const [pauses, idle, walls, transitions]: [number[], number[], number[], number[]] = [[], [], [], []];
  try {
    for (let i = 0; i < APPLIES; i++) {
      const onAll = keepOff(target.pid);
      takeGap(shared);
      await pause(20);
      takeGap(shared);
      const start = performance.now();
      const run = livegraftUnder(onAll, '--json', 'apply', '--pid', pid, built.patch);
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
    nsPerCall,
  };
}

await inFolder(async (folder) => {
  const built = compileWithPatch(folder, 'target.c');
  const nsPerCall = await measureCalls(folder);
  const rows: Row[] = [];
  for (const scenario of SCENARIOS) rows.push(await measure(scenario, built, nsPerCall));
  publish('bench:apply', rows);
});
