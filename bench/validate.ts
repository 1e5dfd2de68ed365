import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fetchKernel } from '../test/support/guest.js';
import { ROOT } from '../test/support/live.js';
import { publish } from './support.js';

/**
 * `npm run -s bench:validate -- --json`: how fast whole files are validated, beside objtool on the same files in the same run.
 * `warm` rows are one thread of a process that has done the set before; all others count from the start of the process.
 * objtool reads relocatable modules only, and needs copies without what it made itself.
 * `SETS=vmlinux,node` measures these alone, `ROUNDS` says how often (3).
 */
const ROUNDS = Number(process.env.ROUNDS ?? 3);
/** V8 compiles what runs often in steps: a set takes a third longer in its fifth round than in its twelfth. */
const [WARM_UP_ROUNDS, WARM_ROUNDS] = [12, 9];
const ALL = availableParallelism();
/** Names of sets; all without it. */
const WANTED = process.env.SETS?.split(',');

interface Row {
  readonly set: string;
  readonly tool: 'livegraft' | 'objtool';
  readonly threads: number;
  readonly warm: boolean;
  readonly textMBPerSecond: number;
  readonly instructionsPerSecond: number;
  readonly wallMs: number;
  readonly peakRssMiB: number;
}

interface Size {
  readonly textBytes: number;
  readonly instructions: number;
}

const OBJTOOL_FLAGS = [
  ...['--hacks=jump_label', '--hacks=noinstr', '--orc', '--retpoline', '--rethunk'],
  ...['--static-call', '--uaccess', '--module', '--dry-run'],
];
/** What objtool adds; with it in place, it has nothing to do. */
const MADE_BY_OBJTOOL = [
  '.orc_unwind',
  '.orc_unwind_ip',
  '.return_sites',
  '.retpoline_sites',
  '.static_call_sites',
];

function findModules(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ko'))
    .map((file) => join(folder, file))
    .sort((a, b) => statSync(b).size - statSync(a).size);
}

/** Debian's objtool of the kernel's own version, fetched by name and not installed. */
function fetchObjtool(folder: string): string {
  run('sh', '-c', `cd '${folder}' && apt-get -q -o APT::Sandbox::User=root download linux-kbuild-6.1`);
  const file = readdirSync(folder).find((each) => each.endsWith('.deb')) as string;
  run('dpkg-deb', '-x', join(folder, file), join(folder, 'kbuild'));
  return join(folder, 'kbuild/usr/lib/linux-kbuild-6.1/tools/objtool/objtool');
}

function run(command: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
}

function stripModules(modules: readonly string[], folder: string): string[] {
  const sections = MADE_BY_OBJTOOL.flatMap((name) => ['-R', name, '-R', `.rela${name}`]);
  return modules.map((module) => {
    const copy = join(folder, basename(module));
    run('objcopy', ...sections, module, copy);
    return copy;
  });
}

/** Runs one process to its end. Its memory is sampled: a process that ends between two samples reports the last. */
function measure(
  command: string,
  args: readonly string[],
): Promise<{ wallMs: number; rssMiB: number; out: string }> {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'] });
    let [rssMiB, out] = [0, ''];
    const sample = () => {
      try {
        const kilobytes = /VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1];
        rssMiB = Math.max(rssMiB, Number(kilobytes ?? 0) / 1024);
      } catch {
        // It has just ended.
      }
    };
    const timer = setInterval(sample, 10);
    child.stdout.on('data', (chunk) => {
      sample();
      out += chunk;
    });
    child.on('error', reject);
    child.on('close', () => {
      clearInterval(timer);
      resolve({ wallMs: performance.now() - start, rssMiB, out });
    });
  });
}

/** As a user starts it, so that "one thread" means it: its first line asks V8 for no threads of its own. */
async function livegraftCold(files: readonly string[], threads: number) {
  const args = ['--json', 'validate', '--no-keep', '--threads', String(threads), ...files];
  const { wallMs, rssMiB, out } = await measure(join(ROOT, 'bin/livegraft.js'), args);
  const last = JSON.parse(out.trim().split('\n').pop() ?? '{}') as Size & {
    event: string;
    unreadable: number;
  };
  if (last.event !== 'validateSummary' || last.unreadable > 0)
    throw new Error(`livegraft: ${out.slice(-500)}`);
  return { wallMs, rssMiB, size: { textBytes: last.textBytes, instructions: last.instructions } };
}

async function objtoolOver(objtool: string, files: readonly string[], threads: number) {
  const queue = [...files];
  const start = performance.now();
  let rssMiB = 0;
  const worker = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      const result = await measure(objtool, [...OBJTOOL_FLAGS, file]);
      rssMiB = Math.max(rssMiB, result.rssMiB);
    }
  };
  await Promise.all(Array.from({ length: threads }, worker));
  return { wallMs: performance.now() - start, rssMiB };
}

/** Through the library as it is shipped: the sources as tsx runs them carry more. */
async function livegraftWarm(files: readonly string[]): Promise<number> {
  const library = (await import(join(ROOT, 'dist/index.js'))) as typeof import('../src/index.js');
  const { parseElf, Scratch, validateElf, x86_64 } = library;
  const scratch = new Scratch();
  const inputs = files.map((file) => ({ file, bytes: readFileSync(file) }));
  const round = () => {
    const start = performance.now();
    for (const { file, bytes } of inputs)
      validateElf(parseElf(bytes, file), { architecture: x86_64, scratch });
    return performance.now() - start;
  };
  for (let i = 0; i < WARM_UP_ROUNDS; i++) round();
  return median(Array.from({ length: WARM_ROUNDS }, round));
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;
}

function makeRow(
  set: string,
  tool: Row['tool'],
  threads: number,
  warm: boolean,
  size: Size,
  wallMs: number,
  rssMiB: number,
): Row {
  const round = (value: number, digits: number) => Math.round(value * 10 ** digits) / 10 ** digits;
  return {
    set,
    tool,
    threads,
    warm,
    textMBPerSecond: round(size.textBytes / 1e3 / wallMs, 2),
    instructionsPerSecond: Math.round((size.instructions / wallMs) * 1000),
    wallMs: round(wallMs, 1),
    peakRssMiB: round(rssMiB, 1),
  };
}

const folder = mkdtempSync(join(tmpdir(), 'livegraft-bench-validate-'));
const rows: Row[] = [];
const add = (row: Row) => rows.push(row);
try {
  const kernel = fetchKernel();
  const modules = findModules(kernel.modules);
  const objtool = fetchObjtool(folder);
  const stripped = join(folder, 'stripped');
  mkdirSync(stripped);
  const copies = stripModules(modules, stripped);
  const crypto = '/usr/lib/x86_64-linux-gnu/libcrypto.so.3';
  const sets = [
    {
      set: 'modules-20-largest',
      files: modules.slice(0, 20),
      objtoolFiles: copies.slice(0, 20),
      isWarm: true,
    },
    { set: 'modules-all', files: modules, objtoolFiles: copies, isWarm: false },
    { set: 'vmlinux', files: [kernel.vmlinuz], objtoolFiles: [], isWarm: false },
    { set: 'kernel-whole', files: [kernel.vmlinuz, ...modules], objtoolFiles: [], isWarm: false },
    { set: 'libcrypto', files: existsSync(crypto) ? [crypto] : [], objtoolFiles: [], isWarm: true },
    { set: 'node', files: [process.execPath], objtoolFiles: [], isWarm: false },
  ];
  for (const { set, files, objtoolFiles, isWarm } of sets) {
    if (files.length === 0 || (WANTED !== undefined && !WANTED.includes(set))) continue;
    for (const threads of ALL > 1 ? [1, ALL] : [1]) {
      const ours: Awaited<ReturnType<typeof livegraftCold>>[] = [];
      const theirs: Awaited<ReturnType<typeof objtoolOver>>[] = [];
      // Turn by turn, so that both meet the same machine.
      for (let i = 0; i < ROUNDS; i++) {
        ours.push(await livegraftCold(files, threads));
        if (objtoolFiles.length > 0) theirs.push(await objtoolOver(objtool, objtoolFiles, threads));
      }
      const { size } = ours[0] as (typeof ours)[number];
      const summary = (runs: readonly { wallMs: number; rssMiB: number }[]) =>
        [median(runs.map((r) => r.wallMs)), median(runs.map((r) => r.rssMiB))] as const;
      add(makeRow(set, 'livegraft', threads, false, size, ...summary(ours)));
      if (theirs.length > 0) add(makeRow(set, 'objtool', threads, false, size, ...summary(theirs)));
      if (threads === 1 && isWarm) {
        add(
          makeRow(
            set,
            'livegraft',
            1,
            true,
            size,
            await livegraftWarm(files),
            process.memoryUsage.rss() / 2 ** 20,
          ),
        );
      }
    }
  }
  publish('bench:validate', rows);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
