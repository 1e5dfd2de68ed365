import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { build } from 'esbuild';
import type { Tally } from '../../src/targets/simulated/schedule.js';
import type {
  FailedSchedule,
  ShrunkSchedule,
  SimulationOptions,
} from '../../src/targets/simulated/simulation.js';
import { ROOT } from '../support/live.js';

/** A change of one source file that breaks it. */
export interface Damage {
  /** Below `src/`. */
  readonly file: string;
  /** Stands there exactly once. */
  readonly find: string;
  readonly replace: string;
}

/** Compiles the simulation, with its engine and target, into one script; with `damage` in it where that is given. */
export async function compileSimulation(damage?: Damage): Promise<string> {
  let isDamaged = false;
  const result = await build({
    stdin: {
      contents: `
        import { parentPort, workerData } from 'node:worker_threads';
        import { explainFailure, simulate } from './src/targets/simulated/simulation.js';
        simulate(workerData).then(async (outcome) => {
          const { failed } = outcome;
          const shrunk = failed && workerData.explains ? await explainFailure(failed) : undefined;
          parentPort.postMessage({ ...outcome, shrunk });
        });`,
      resolveDir: ROOT,
    },
    bundle: true,
    write: false,
    platform: 'node',
    format: 'cjs',
    target: 'node20',
    plugins: [
      {
        name: 'damage',
        setup(compiler) {
          compiler.onLoad({ filter: /\.ts$/ }, async ({ path }) => {
            if (damage === undefined || path !== join(ROOT, 'src', damage.file)) return undefined;
            const parts = (await readFile(path, 'utf8')).split(damage.find);
            if (parts.length !== 2)
              throw new Error(`${damage.file} holds this ${parts.length - 1} times:\n${damage.find}`);
            isDamaged = true;
            return { contents: parts.join(damage.replace), loader: 'ts' };
          });
        },
      },
    ],
  });
  if (damage !== undefined && !isDamaged) throw new Error(`${damage.file} is no part of the simulation`);
  return (result.outputFiles[0] as { text: string }).text;
}

/** Runs what {@link compileSimulation} made, on a thread of its own. With `explains` a schedule that fails is made short. */
export async function runCompiled(
  script: string,
  options: SimulationOptions & { readonly explains?: boolean },
): Promise<{
  readonly tally: Tally;
  readonly failed: FailedSchedule | undefined;
  readonly shrunk: ShrunkSchedule | undefined;
}> {
  return await new Promise((resolve, reject) => {
    const worker = new Worker(script, { eval: true, workerData: options });
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}
