import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { decompressors } from '../../src/cli/decompressors.js';
import { type JsonLine, jsonLineSchema } from '../../src/cli/json-schema.js';
import { extractVmlinux } from '../../src/kernel-image/decompress.js';
import { bootGuest, type Guest } from '../support/guest.js';
import { allowRuns, livegraft } from '../support/live.js';

/**
 * `npm run soak:kernel -- [--switches N] [--timeout SECONDS]`: boots Debian's cloud kernel with a load, walks the stack at so many context
 * switches (10,000 unless said otherwise), and all stacks before and after. Ends with 1 when one was not reliable: of the looks before and
 * after, only where it was a kernel thread's, and its CPU was not between two tasks, which the next look does not find any more.
 */
const { values } = parseArgs({
  options: {
    switches: { type: 'string', default: '10000' },
    timeout: { type: 'string', default: '480' },
  },
});

/** Forks, reads, pipes and page faults; and what kernel threads do: writing back, deferred work, timers, RCU, memory reclaim. */
const LOADS = [
  'while :; do cat /proc/version; ls /proc; done >/dev/null 2>&1',
  'while :; do dd if=/dev/zero bs=64k count=16 2>/dev/null | md5sum; done >/dev/null',
  'while :; do (head -c 200000 /dev/urandom | gzip | gunzip >/tmp/out); rm -f /tmp/out; sync; done >/dev/null 2>&1',
  'while :; do echo 3 > /proc/sys/vm/drop_caches; echo 1 > /proc/sys/vm/compact_memory; sleep 0.2; done',
  'while :; do sleep 0.01; done',
];

type SoakLine = Extract<JsonLine, { event: 'soak' }>;
type StackLine = Extract<JsonLine, { event: 'kernelStack' }>;

function lastLine<E extends JsonLine['event']>(event: E, args: readonly string[]) {
  const run = livegraft(...args, '--json');
  const line = jsonLineSchema.parse(run.lines.at(-1));
  if (line.event !== event) throw new Error(`${args[0]}: ${run.stdout}${run.stderr}`);
  return line as Extract<JsonLine, { event: E }>;
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Says what is in it, and returns how many kernel threads could not be walked for another reason than that a CPU was between two tasks. */
function tellStacks(when: string, { tasks }: StackLine): number {
  const kthreads = tasks.filter((task) => task.kthread);
  const refused = tasks.filter((task) => !task.reliable);
  say(
    `${when}: ${tasks.length} tasks, ${kthreads.length} of them kernel threads, ${refused.length} unreliable`,
  );
  for (const task of refused)
    say(
      `  ${task.name} (${task.pid})${task.kthread ? ', a kernel thread' : ''}: ${JSON.stringify(task.reason)}`,
    );
  return refused.filter((task) => task.kthread && task.reason?.code !== 'between-cpus').length;
}

function tellSoak(line: SoakLine): number {
  say(
    `${line.switches} context switches of ${line.tasks} tasks (${line.kthreads} kernel threads) in ${(line.durationMs / 1000).toFixed(0)} s: ${line.unreliable} unreliable`,
  );
  for (const { count, cause, place, detail } of line.findings)
    say(`  ${count} × ${cause} at ${place}: ${detail}`);
  say(`  kernel threads whose stack was not reliable: ${line.unreliableKthreads?.join(', ') || 'none'}`);
  return line.unreliable;
}

async function soak(guest: Guest, folder: string): Promise<boolean> {
  const vmlinux = join(folder, 'vmlinux');
  writeFileSync(vmlinux, extractVmlinux(readFileSync(guest.kernel.vmlinuz), 'vmlinuz', decompressors));
  const subject = ['--gdb', guest.gdb, '--vmlinux', vmlinux];
  if (guest.memoryFile !== undefined) subject.push('--guest-memory', guest.memoryFile);
  say(`kernel ${guest.kernel.release}, 2 CPUs`);
  let failures = tellStacks('before', lastLine('kernelStack', ['stack', ...subject]));
  await guest.run(`${LOADS.map((load) => `(${load}) &`).join(' ')} sleep 0`, 60_000);
  failures += tellSoak(
    lastLine('soak', ['soak', ...subject, '--switches', values.switches, '--timeout', values.timeout]),
  );
  failures += tellStacks('under load', lastLine('kernelStack', ['stack', ...subject]));
  const alive = await guest.run('echo alive', 60_000);
  say(alive.includes('alive') ? 'the guest goes on' : 'the guest does not answer');
  return failures === 0 && alive.includes('alive');
}

allowRuns(600_000);
const folder = mkdtempSync(join(tmpdir(), 'livegraft-soak-'));
const guest = await bootGuest({ vcpus: 2, sharedMemory: true });
try {
  if (!(await soak(guest, folder))) process.exitCode = 1;
} finally {
  guest.stop();
  rmSync(folder, { recursive: true, force: true });
}
