import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { x86_64 } from '../src/arch/x86-64/index.js';
import { ProcessSession } from '../src/targets/process/process-session.js';
import { livegraft, startTarget } from '../test/support/live.js';
import { compileC, inFolder, medianOf, publish } from './support.js';

/**
 * `npm run -s bench:stack -- --json`: walks of 64 blocked threads, 21 frames or so each, compiled without frame pointers.
 *
 * `framesPerSecond`: of walking alone, registers at hand, tables warm (eu-stack: of its whole run, which is cold).
 * `heldMsPerThread`: from the interrupt of one thread until it goes on, warm; the median of all. eu-stack can't be
 * asked: the difference between its runs on 64 and on one thread, for each thread. `wallMs`: one whole command.
 */
const THREADS = 64;
const ROUNDS = 60;
const RUNS = 11;

interface Row {
  readonly tool: 'livegraft' | 'eu-stack' | 'libunwind';
  readonly threads: number;
  readonly frames: number;
  readonly framesPerSecond: number;
  readonly heldMsPerThread: number;
  readonly wallMs: number;
}

function wallOf(command: string, ...args: readonly string[]): number {
  const walls: number[] = [];
  for (let i = 0; i < RUNS; i++) {
    const start = performance.now();
    const { status, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 26 });
    walls.push(performance.now() - start);
    if (status !== 0) throw new Error(`${command}: ${stderr}`);
  }
  return medianOf(walls);
}

/** The walk as a transition makes it: every check, and the refusal of anything that is not proven. */
function walkWithLivegraft(pid: number): Omit<Row, 'tool' | 'wallMs'> {
  const session = new ProcessSession(pid, x86_64);
  const [held, walked]: [number[], number[]] = [[], []];
  let frames = 0;
  try {
    session.seize();
    const inspector = session.inspector();
    for (let round = 0; round < ROUNDS; round++) {
      frames = 0;
      let walkMs = 0;
      for (const tracee of session.tracer.tracees.values()) {
        const start = performance.now();
        session.tracer.interrupt(tracee);
        if (session.tracer.collect(tracee, 1000) !== 'stopped') throw new Error('a thread did not stop');
        session.tracer.fetchRegisters(tracee);
        const stopped = performance.now();
        const walk = inspector.walk(tracee);
        walkMs += performance.now() - stopped;
        session.tracer.resume(tracee);
        held.push(performance.now() - start);
        if (!walk.reliable) throw new Error(`unreliable: ${walk.reason.detail}`);
        frames += walk.frames.length;
      }
      walked.push(walkMs);
    }
  } finally {
    session.close();
  }
  // The first rounds read the tables and compile the code.
  const warm = Math.floor(held.length / 2);
  return {
    threads: THREADS,
    frames,
    framesPerSecond: Math.round((frames / medianOf(walked.slice(ROUNDS / 2))) * 1000),
    heldMsPerThread: medianOf(held.slice(warm)),
  };
}

function walkWithLibunwind(program: string, pid: number): Omit<Row, 'tool' | 'wallMs'> {
  const { status, stdout, stderr } = spawnSync(program, [String(pid), String(ROUNDS)], { encoding: 'utf8' });
  const found = /^(\d+) frames (\d+) frames\/s (\S+) ms held$/m.exec(stdout);
  if (status !== 0 || found === null) throw new Error(`libunwind: ${stdout}${stderr}`);
  return {
    threads: THREADS,
    frames: Number(found[1]),
    framesPerSecond: Number(found[2]),
    heldMsPerThread: Number(found[3]),
  };
}

await inFolder(async (folder) => {
  const program = compileC(join(folder, 'target'), 'target.c', '-fomit-frame-pointer', '-lpthread');
  const libunwind = compileC(
    join(folder, 'libunwind'),
    'libunwind.c',
    '-lunwind-ptrace',
    '-lunwind-generic',
    '-lunwind',
  );
  const shared = join('/dev/shm', `livegraft-bench-${process.pid}`);
  const target = await startTarget(program, '0', '0', String(THREADS), shared, '300');
  const single = await startTarget(program, '0', '0', '1', `${shared}-1`, '300');
  const pid = String(target.pid);
  try {
    const rows: Row[] = [];
    const stack = livegraft('stack', '--pid', pid);
    if (stack.code !== 0) throw new Error(stack.stderr);
    const livegraftWall = wallOf('bin/livegraft.js', 'stack', '--pid', pid);
    rows.push({ tool: 'livegraft', ...walkWithLivegraft(target.pid), wallMs: livegraftWall });
    const euWall = wallOf('eu-stack', '-p', pid);
    const { stdout } = spawnSync('eu-stack', ['-p', pid], { encoding: 'utf8' });
    const frames = [...stdout.matchAll(/^#\d+/gm)].length;
    rows.push({
      tool: 'eu-stack',
      threads: THREADS,
      frames,
      framesPerSecond: Math.round((frames / euWall) * 1000),
      heldMsPerThread: medianOf([(euWall - wallOf('eu-stack', '-p', String(single.pid))) / (THREADS - 1)]),
      wallMs: euWall,
    });
    const libunwindWall = wallOf(libunwind, pid, '1');
    rows.push({ tool: 'libunwind', ...walkWithLibunwind(libunwind, target.pid), wallMs: libunwindWall });
    publish('bench:stack', rows);
  } finally {
    target.stop();
    single.stop();
    rmSync(shared, { force: true });
    rmSync(`${shared}-1`, { force: true });
  }
});
