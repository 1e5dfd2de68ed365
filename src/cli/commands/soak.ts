import type { SoakEnd, SoakOptions, SoakReport } from '../../targets/soak.js';
import { SOAK_EXIT } from '../conventions.js';
import type { Io } from '../io.js';
import type { KernelReference } from '../kernel-connection.js';
import { soak } from '../kernel-views.js';
import type { Output } from '../output.js';
import { createProcessOperations } from '../process-operations.js';

export interface SoakLimits {
  readonly switches: number;
  readonly timeoutMs: number;
}

export async function soakKernelStacks(
  reference: KernelReference,
  limits: SoakLimits,
  output: Output,
  io: Io,
): Promise<number> {
  const report = await run('context switches', limits, output, io, (options) => soak(reference, options));
  const { instants: _, ...fields } = report;
  output.json({
    ...{ event: 'soak', ...fields },
    findings: [...report.findings],
    unreliableKthreads: [...report.unreliableKthreads],
  });
  return conclude(
    report,
    `${report.switches} context switches of ${report.tasks} tasks (${report.kthreads} kernel threads)`,
    output,
  );
}

export async function soakProcessStacks(
  pid: number,
  limits: SoakLimits & { readonly seed: number },
  output: Output,
  io: Io,
): Promise<number> {
  const report = await run('stacks', limits, output, io, (options) =>
    createProcessOperations().soak(pid, { ...options, seed: limits.seed }),
  );
  const { kthreads: _, unreliableKthreads: _names, ...fields } = report;
  output.json({ event: 'soak', ...fields, findings: [...report.findings] });
  return conclude(
    report,
    `${report.switches} stacks of ${report.tasks} threads (${report.instants} at random instants)`,
    output,
  );
}

async function run(
  what: string,
  limits: SoakLimits,
  output: Output,
  io: Io,
  work: (options: SoakOptions) => Promise<SoakReport>,
): Promise<SoakReport> {
  const abort = new AbortController();
  const stopListening = io.onInterrupt(() => abort.abort());
  try {
    return await work({
      switches: limits.switches,
      timeoutMs: limits.timeoutMs,
      signal: abort.signal,
      onProgress: (switches, unreliable) =>
        output.text(`${switches} ${what}, ${unreliable} ${what === 'stacks' ? '' : 'stacks '}unreliable`),
    });
  } finally {
    stopListening();
  }
}

const ENDS: Readonly<Record<SoakEnd, string>> = {
  count: '',
  time: ' (the time was over)',
  interrupt: ' (interrupted)',
  exit: ' (the process has ended)',
  exec: ' (the process has executed another program)',
};

function conclude(report: SoakReport, what: string, output: Output): number {
  const { green, red } = output.colors;
  for (const { cause, place, count, detail } of report.findings)
    output.text(`  ${red(`${count} ×`)} ${cause} at ${place}: ${detail}`);
  const verdict =
    report.unreliable === 0 ? green('all stacks reliable') : red(`${report.unreliable} unreliable`);
  output.text(`${what} in ${(report.durationMs / 1000).toFixed(1)} s${ENDS[report.endedBy]}: ${verdict}`);
  return report.unreliable === 0 ? SOAK_EXIT.reliable : SOAK_EXIT.unreliable;
}
