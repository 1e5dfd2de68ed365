import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { join } from 'node:path';
import type { z } from 'zod';
import { decompressors } from '../src/cli/decompressors.js';
import { jsonLineSchema } from '../src/cli/json-schema.js';
import { extractVmlinux } from '../src/kernel-image/decompress.js';
import { bootGuest, fetchKernel } from '../test/support/guest.js';
import { compileKernelObject } from '../test/support/kernel-objects.js';
import { livegraft, ROOT } from '../test/support/live.js';
import { inFolder, medianOf, publish, spread } from './support.js';

type JsonLine = z.infer<typeof jsonLineSchema>;

/**
 * `npm run -s bench:kernel -- --json`: transitions in Debian's cloud kernel under an emulator, with 100, 500 and 2000
 * tasks in the guest, which goes on forking and reading files; then what a call of a patched function costs. Whole commands
 * are run, as by hand. `slices` is how often the guest stood still in one command, `longestSliceMs` its longest stop, `over2Ms` how
 * many of 1000 stops of all commands were longer than 2 ms. `--tasks N` takes only the transitions with N tasks, with shared memory or, by
 * `--protocol`, without; `--calls` only the calls. `--phases` says on stderr during what the long stops were.
 */
const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SCENARIOS = [
  { tasks: 100, sharedMemory: true },
  { tasks: 500, sharedMemory: true },
  { tasks: 2000, sharedMemory: true },
  { tasks: 100, sharedMemory: false },
  { tasks: 500, sharedMemory: false },
];

interface Stops {
  readonly stops: number;
  readonly longestMs: number;
  readonly totalMs: number;
  readonly longStops: number;
}

type TransitionLine = Extract<JsonLine, { event: 'transition' }>;

function transition(...args: string[]): { readonly line: TransitionLine; readonly wallMs: number } {
  const startedAt = performance.now();
  const run = livegraft(...args, '--json');
  const wallMs = performance.now() - startedAt;
  const line = jsonLineSchema.parse(run.lines.at(-1));
  if (line.event !== 'transition' || line.result.kind !== 'complete')
    throw new Error(`a transition was not complete: ${run.stdout}`);
  return { line, wallMs };
}

async function measure({ tasks, sharedMemory }: (typeof SCENARIOS)[number], folder: string) {
  const guest = await bootGuest({ vcpus: 2, sharedMemory });
  try {
    const vmlinux = join(folder, 'vmlinux');
    const object = compileKernelObject(folder, 'cmdline.c');
    const patch = join(folder, 'cmdline.lgp');
    const built = livegraft('build', '--replacement', object, '--target', vmlinux, '-o', patch);
    if (built.code !== 0) throw new Error(built.stderr);
    const present = Number(await guest.run('ls -d /proc/[0-9]* | wc -l'));
    await guest.run(
      `i=${present}; while [ $i -lt ${tasks} ]; do sleep 100000 & i=$((i+1)); done; (while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0`,
      120_000,
    );
    const subject = ['--gdb', guest.gdb, '--vmlinux', vmlinux];
    if (guest.memoryFile !== undefined) subject.push('--guest-memory', guest.memoryFile);
    const runs: ReturnType<typeof transition>[] = [];
    for (let round = 0; round < ROUNDS; round++)
      runs.push(transition('apply', patch, ...subject), transition('revert', ...subject));
    const stops = runs.map(({ line }): Stops => {
      if (line.guest === undefined) throw new Error('no word of the guest');
      return line.guest;
    });
    if (process.argv.includes('--phases')) showPhases(runs);
    const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
    return {
      ...{ what: 'transition', tasks, sharedMemory, transitions: runs.length },
      // Of this machine: stops last as long as livegraft waits for a processor.
      loadAverage: Math.round(loadavg()[0] as number),
      transitionMs: spread(runs.map(({ line }) => line.result.durationMs)),
      wallMs: medianOf(runs.map(({ wallMs }) => wallMs)),
      slices: medianOf(stops.map((each) => each.stops)),
      longestSliceMs: spread(stops.map((each) => each.longestMs)),
      over2Ms: Math.round((1000 * sum(stops.map((s) => s.longStops))) / sum(stops.map((s) => s.stops))),
      stoppedMs: medianOf(stops.map((each) => each.totalMs)),
    };
  } finally {
    guest.stop();
  }
}

function showPhases(runs: readonly ReturnType<typeof transition>[]): void {
  const phases = new Map<string, { stops: number; longStops: number; longestMs: number }>();
  for (const { phase, stops, longStops, longestMs } of runs.flatMap(({ line }) => line.guest?.phases ?? [])) {
    const sum = phases.get(phase) ?? { stops: 0, longStops: 0, longestMs: 0 };
    sum.stops += stops;
    sum.longStops += longStops;
    sum.longestMs = Math.max(sum.longestMs, longestMs);
    phases.set(phase, sum);
  }
  for (const [phase, { stops, longStops, longestMs }] of phases)
    process.stderr.write(`${phase}: ${stops} stops, ${longStops} long, ${longestMs.toFixed(2)} ms at most\n`);
}

/**
 * What a call of a patched function costs over one that is not: a system call in a loop, as it is, redirected by livegraft, and
 * redirected by the kernel's own livepatch through ftrace, with the same new code. All in one guest with one CPU.
 */
async function measureCalls(folder: string, countInstructions: boolean) {
  const loop = join(folder, 'getpid-loop');
  const flags = ['-O2', '-nostdlib', '-static', '-fno-stack-protector', '-fno-pie', '-no-pie'];
  const made = spawnSync('gcc', [...flags, '-o', loop, join(ROOT, 'test/targets/getpid-loop.c')], {
    encoding: 'utf8',
  });
  if (made.status !== 0) throw new Error(made.stderr);
  const vmlinux = join(folder, 'vmlinux');
  const object = compileKernelObject(folder, 'getpid.c');
  const [patchPath, modulePath] = [join(folder, 'getpid.lgp'), join(folder, 'getpid.ko')];
  for (const [format, path] of [
    ['lgp', patchPath],
    ['klp', modulePath],
  ] as const) {
    const built = livegraft(
      ...['build', '--replacement', object, '--target', vmlinux, '--format', format, '-o', path],
    );
    if (built.code !== 0) throw new Error(built.stderr);
  }
  const files = [
    { path: 'bin/getpid-loop', data: readFileSync(loop) },
    { path: 'lib/getpid.ko', data: readFileSync(modulePath) },
  ];
  const guest = await bootGuest({ vcpus: 1, sharedMemory: true, countInstructions, files: () => files });
  try {
    const perCall = async () => {
      const rounds: number[] = [];
      for (let round = 0; round < ROUNDS; round++)
        rounds.push(Number(await guest.run('getpid-loop', 60_000)));
      return medianOf(rounds);
    };
    const original = await perCall();
    await guest.run('insmod /lib/getpid.ko');
    const state = '/sys/kernel/livepatch/livegraft_getpid';
    await guest.run(`while [ "$(cat ${state}/transition)" != 0 ]; do sleep 0.2; done`, 60_000);
    const livepatch = await perCall();
    await guest.run(`echo 0 > ${state}/enabled; while [ -e ${state} ]; do sleep 0.2; done`, 60_000);
    const again = await perCall();
    await guest.run('(while :; do cat /proc/version > /dev/null; sleep 0.2; done) & sleep 0');
    transition(
      'apply',
      patchPath,
      ...['--gdb', guest.gdb, '--vmlinux', vmlinux, '--guest-memory', guest.memoryFile as string],
    );
    return { original, livepatch, again, livegraft: await perCall() };
  } finally {
    guest.stop();
  }
}

await inFolder(async (folder) => {
  const { vmlinuz } = fetchKernel();
  writeFileSync(join(folder, 'vmlinux'), extractVmlinux(readFileSync(vmlinuz), 'vmlinuz', decompressors));
  const rows: object[] = [];
  const only = process.argv.indexOf('--tasks') + 1;
  for (const scenario of process.argv.includes('--calls') ? [] : SCENARIOS)
    if (
      only === 0 ||
      (scenario.tasks === Number(process.argv[only]) &&
        scenario.sharedMemory !== process.argv.includes('--protocol'))
    )
      rows.push(await measure(scenario, folder));
  if (only === 0) {
    const [ns, instructions] = [await measureCalls(folder, false), await measureCalls(folder, true)];
    for (const redirect of ['original', 'livepatch', 'again', 'livegraft'] as const)
      rows.push({
        ...{ what: 'call', redirect },
        ...{ nsPerCall: ns[redirect], instructionsPerCall: instructions[redirect] },
      });
  }
  publish('bench:kernel', rows);
});
