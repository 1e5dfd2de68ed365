import { parentPort, workerData } from 'node:worker_threads';
import { Scratch } from '../validate/scratch.js';
import { type ValidateJob, validateFile } from './validate-files.js';

/** Validates the files that the main thread names, one message each, and answers with reports. */
const job = workerData as ValidateJob;
const scratch = new Scratch();
parentPort?.on('message', (files: readonly string[]) => {
  parentPort?.postMessage(files.map((file) => validateFile(file, job, scratch)));
});
