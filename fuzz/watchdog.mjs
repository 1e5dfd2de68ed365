// A worker thread of `run.ts`: keeps the case that the main thread hangs in, which can do nothing itself any more, and ends the process.
import { mkdirSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { workerData } from 'node:worker_threads';

const { state, bytes, folder, target, maxCaseMs, maxRssBytes } = workerData;
const LOOK_EVERY_MS = 500;
let number = -1;
let since = 0;

setInterval(() => {
  const [current, length] = [Atomics.load(state, 0), Atomics.load(state, 1)];
  if (current !== number) {
    number = current;
    since = performance.now();
    if (process.memoryUsage.rss() <= maxRssBytes) return;
    keep(`the process has ${Math.round(process.memoryUsage.rss() / 2 ** 20)} MiB`, length);
  } else if (performance.now() - since > maxCaseMs && length >= 0) {
    keep(`no end after ${maxCaseMs} ms`, length);
  }
}, LOOK_EVERY_MS);

function keep(why, length) {
  mkdirSync(folder, { recursive: true });
  const name = `${target}-hang-${process.pid}`;
  writeFileSync(join(folder, name), bytes.subarray(0, length));
  writeSync(1, `${name}: ${why}\n`);
  process.kill(process.pid, 'SIGKILL');
}
