import { existsSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { Worker } from 'node:worker_threads';
import { Scratch } from '../validate/scratch.js';
import { type FileReport, type ValidateJob, validateFile } from './validate-files.js';

/** A worker thread compiles everything anew, which takes it a second or more: a second one pays from about this much on. */
const WORTH_A_THREAD_BYTES = 16 * 1024 * 1024;
/** With a processor to spare, a worker pays for one file, too: its code is compiled beside the work. */
const WORTH_A_WORKER_BYTES = 4 * 1024 * 1024;
const BATCH_BYTES = 2 * 1024 * 1024;

/** Who wants to hear how far it is. */
export interface ValidateWatcher {
  /** Before anything is read. */
  onStart?(files: readonly { readonly file: string; readonly sizeBytes: number }[]): void;
  /** How much of a file is done, from 0 to 1; of small files never. */
  onProgress?(file: string, fraction: number): void;
  onReport(report: FileReport): void;
}

/** What a worker answers with. */
export type WorkerMessage =
  | { readonly kind: 'reports'; readonly reports: readonly FileReport[] }
  | { readonly kind: 'progress'; readonly file: string; readonly fraction: number };

/**
 * Validates files on up to `threads` threads, the largest first, and calls back with each report in the order in which they
 * are done. Rejects only for a bug of ours.
 */
export async function validateFiles(
  files: readonly string[],
  job: ValidateJob,
  threads: number,
  watcher: ValidateWatcher,
): Promise<void> {
  const sized = files
    .map((file) => ({ file, sizeBytes: sizeOf(file) }))
    .sort((a, b) => b.sizeBytes - a.sizeBytes);
  watcher.onStart?.(sized);
  const total = sized.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const script = fileURLToPath(new URL('./validate-worker.cjs', import.meta.url));
  const count = Math.min(threads, files.length, Math.ceil(total / WORTH_A_THREAD_BYTES));
  const isWorkerWorth = threads > 1 && (count > 1 || total > WORTH_A_WORKER_BYTES);
  // Functions that have others inlined take ten times as long to compile and hardly run faster.
  setFlagsFromString('--max-inlined-bytecode-size-cumulative=150');
  // Where the sources run unbundled there is no script to start.
  if (!isWorkerWorth || !existsSync(script)) {
    const scratch = new Scratch();
    for (const { file } of sized) {
      const report = validateFile(file, job, scratch, (fraction) => watcher.onProgress?.(file, fraction));
      watcher.onReport(report);
      // Lets a progress line be drawn.
      await new Promise((resolve) => setImmediate(resolve));
    }
    return;
  }
  // Compiling beside the work pays with a processor to spare. With one thread a processor, compiled code comes late, and the work is
  // done the slow way meanwhile: it took twice the processor time. Read by V8 when a worker starts.
  const isSpare = count < availableParallelism();
  setFlagsFromString(isSpare ? '--concurrent-recompilation' : '--no-concurrent-recompilation');
  const takeBatch = (): string[] => {
    const batch: string[] = [];
    for (let bytes = 0; bytes < BATCH_BYTES; ) {
      const next = sized.shift();
      if (next === undefined) break;
      batch.push(next.file);
      bytes += next.sizeBytes;
    }
    return batch;
  };
  await Promise.all(Array.from({ length: count }, () => runWorker(script, job, takeBatch, watcher)));
}

function runWorker(
  script: string,
  job: ValidateJob,
  takeBatch: () => string[],
  watcher: ValidateWatcher,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(script, { workerData: job });
    const next = () => {
      const batch = takeBatch();
      if (batch.length > 0) worker.postMessage(batch);
      else void worker.terminate().then(() => resolve());
    };
    worker.on('message', (message: WorkerMessage) => {
      if (message.kind === 'progress') {
        watcher.onProgress?.(message.file, message.fraction);
        return;
      }
      for (const report of message.reports) watcher.onReport(report);
      next();
    });
    worker.on('error', reject);
    next();
  });
}

function sizeOf(file: string): number {
  try {
    return statSync(file).size;
  } catch {
    return 0;
  }
}
