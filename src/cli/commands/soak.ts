import { EXIT } from '../conventions.js';
import type { Io } from '../io.js';
import { type KernelReference, soak } from '../kernel-operations.js';
import type { Output } from '../output.js';

export async function soakStacks(
  reference: KernelReference,
  limits: { readonly switches: number; readonly timeoutMs: number },
  output: Output,
  io: Io,
): Promise<number> {
  const abort = new AbortController();
  const stopListening = io.onInterrupt(() => abort.abort());
  try {
    const report = await soak(reference, {
      ...limits,
      signal: abort.signal,
      onProgress: (switches, unreliable) =>
        output.text(`${switches} context switches, ${unreliable} stacks unreliable`),
    });
    output.json({ event: 'soak', ...report, findings: [...report.findings] });
    const { green, red } = output.colors;
    for (const { cause, place, count, detail } of report.findings)
      output.text(`  ${red(`${count} ×`)} ${cause} at ${place}: ${detail}`);
    const verdict =
      report.unreliable === 0 ? green('all stacks reliable') : red(`${report.unreliable} unreliable`);
    output.text(
      `${report.switches} context switches of ${report.tasks} tasks (${report.kthreads} kernel threads) in ${(report.durationMs / 1000).toFixed(1)} s: ${verdict}`,
    );
    return report.unreliable === 0 ? EXIT.done : EXIT.failed;
  } finally {
    stopListening();
  }
}
