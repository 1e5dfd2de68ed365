import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, release, tmpdir } from 'node:os';
import { join } from 'node:path';
import { decompressors } from '../src/cli/decompressors.js';
import { applyToKernel, type KernelOutcome, revertFromKernel } from '../src/cli/kernel-operations.js';
import { extractVmlinux } from '../src/kernel-image/decompress.js';
import { bootGuest, fetchKernel } from '../test/support/guest.js';
import { compileKernelObject } from '../test/support/kernel-objects.js';
import { livegraft, ROOT } from '../test/support/live.js';

/**
 * `npm run -s bench:kernel -- --json`: transitions in Debian's cloud kernel under an emulator, with 100, 500 and 2000
 * tasks in the guest, which goes on forking and reading files. Each row is the median of applies and reverts; `longestSliceMs` is the
 * median and the maximum over them of the longest time for which the guest stood still.
 */
const ROUNDS = Number(process.env.ROUNDS ?? 5);
const SCENARIOS = [
  { tasks: 100, sharedMemory: true },
  { tasks: 500, sharedMemory: true },
  { tasks: 2000, sharedMemory: true },
  { tasks: 100, sharedMemory: false },
];

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return Math.round((sorted[Math.floor(sorted.length / 2)] ?? 0) * 100) / 100;
}

async function measure({ tasks, sharedMemory }: (typeof SCENARIOS)[number], folder: string) {
  const guest = await bootGuest({ vcpus: 2, sharedMemory });
  try {
    const vmlinux = join(folder, 'vmlinux');
    const object = compileKernelObject(folder, 'cmdline.c');
    const patchPath = join(folder, 'cmdline.lgp');
    const built = livegraft('build', '--replacement', object, '--target', vmlinux, '-o', patchPath);
    if (built.code !== 0) throw new Error(built.stderr);
    const present = Number(await guest.run('ls -d /proc/[0-9]* | wc -l'));
    await guest.run(
      `i=${present}; while [ $i -lt ${tasks} ]; do sleep 100000 & i=$((i+1)); done; (while :; do cat /proc/version; ls /; done >/dev/null) & sleep 0`,
      120_000,
    );
    const common = {
      ...{ gdb: guest.gdb, vmlinux, guestMemory: guest.memoryFile, patchPath, patch: undefined },
      ...{
        model: 'hybrid' as const,
        timeoutMs: 60_000,
        signal: new AbortController().signal,
        onEvent: () => {},
      },
    };
    const outcomes: KernelOutcome[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      outcomes.push(await applyToKernel(common), await revertFromKernel(common));
    }
    for (const { result } of outcomes)
      if (result.kind !== 'complete') throw new Error('a transition was not complete');
    const [last] = outcomes.slice(-1);
    const seen = last?.result.kind === 'complete' ? last.result.tasks : 0;
    const longest = outcomes.map((outcome) => outcome.statistics.longestMs);
    return {
      ...{ tasks: seen, sharedMemory, transitions: outcomes.length },
      transitionMs: median(outcomes.map((outcome) => outcome.result.durationMs)),
      slices: median(outcomes.map((outcome) => outcome.statistics.stops)),
      longestSliceMs: { median: median(longest), max: Math.round(Math.max(...longest) * 100) / 100 },
      stoppedMs: median(outcomes.map((outcome) => outcome.statistics.totalMs)),
    };
  } finally {
    guest.stop();
  }
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
      return median(rounds);
    };
    const original = await perCall();
    await guest.run('insmod /lib/getpid.ko');
    const state = '/sys/kernel/livepatch/livegraft_getpid';
    await guest.run(`while [ "$(cat ${state}/transition)" != 0 ]; do sleep 0.2; done`, 60_000);
    const livepatch = await perCall();
    await guest.run(`echo 0 > ${state}/enabled; while [ -e ${state} ]; do sleep 0.2; done`, 60_000);
    const again = await perCall();
    await guest.run('(while :; do cat /proc/version > /dev/null; sleep 0.2; done) & sleep 0');
    const outcome = await applyToKernel({
      ...{ gdb: guest.gdb, vmlinux, guestMemory: guest.memoryFile, patchPath, patch: undefined },
      ...{ model: 'hybrid', timeoutMs: 60_000, signal: new AbortController().signal, onEvent: () => {} },
    });
    if (outcome.result.kind !== 'complete') throw new Error('a transition was not complete');
    return { original, livepatch, again, livegraft: await perCall() };
  } finally {
    guest.stop();
  }
}

const folder = mkdtempSync(join(tmpdir(), 'livegraft-bench-kernel-'));
try {
  const { vmlinuz } = fetchKernel();
  writeFileSync(join(folder, 'vmlinux'), extractVmlinux(readFileSync(vmlinuz), 'vmlinuz', decompressors));
  const rows = [];
  const isCallsOnly = process.argv.includes('--calls');
  for (const scenario of isCallsOnly ? [] : SCENARIOS) {
    rows.push(await measure(scenario, folder));
    if (!process.argv.includes('--json')) process.stdout.write(`${JSON.stringify(rows.at(-1))}\n`);
  }
  const calls = {
    nanoseconds: await measureCalls(folder, false),
    instructions: await measureCalls(folder, true),
  };
  if (!process.argv.includes('--json')) process.stdout.write(`${JSON.stringify(calls)}\n`);
  const machine = { cpu: cpus()[0]?.model, cores: cpus().length, kernel: release(), accelerator: 'tcg' };
  if (process.argv.includes('--json'))
    process.stdout.write(`${JSON.stringify({ machine, rows, calls }, null, 2)}\n`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
