import { parentPort, workerData } from 'node:worker_threads';
import { Scratch } from '../validate/scratch.js';
import { type ValidateJob, validateFile } from './validate-files.js';
import type { WorkerMessage } from './validate-pool.js';

/** Validates the files that the main thread names, one message each, and answers with reports. */
const job = workerData as ValidateJob;
const scratch = new Scratch();
const post = (message: WorkerMessage) => parentPort?.postMessage(message);
parentPort?.on('message', (files: readonly string[]) => {
  const reports = files.map((file) =>
    validateFile(file, job, scratch, (fraction) => post({ kind: 'progress', file, fraction })),
  );
  post({ kind: 'reports', reports });
});
