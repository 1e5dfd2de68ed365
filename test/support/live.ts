import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Support of the live tests: compiling targets, starting them as nobody's children, running the command line. */

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
/** For objects that use livegraft.h. */
export const PATCH_INCLUDES = `-I${join(ROOT, 'include')}`;
const CACHE = join(tmpdir(), `livegraft-test-${process.getuid?.() ?? 0}`);

/** Compiles with gcc into a cache keyed by source and flags; returns the output's path. */
export function compile(
  source: string,
  kind: 'program' | 'library' | 'object',
  flags: readonly string[] = [],
): string {
  const path = join(ROOT, 'test/targets', source);
  const key = createHash('sha256')
    .update(readFileSync(path))
    .update(flags.includes(PATCH_INCLUDES) ? readFileSync(join(ROOT, 'include/livegraft.h')) : '')
    .update(JSON.stringify([kind, flags]))
    .digest('hex')
    .slice(0, 16);
  const folder = join(CACHE, key);
  mkdirSync(folder, { recursive: true });
  const name = source.replace(/\.c$/, SUFFIXES[kind]);
  const output = join(folder, name);
  if (existsSync(output)) return output;
  const last = kind === 'object' ? [] : ['-Wl,--build-id', '-lpthread'];
  const first = { program: [], library: ['-shared', '-fPIC'], object: ['-c'] }[kind];
  const args = ['-O2', '-g', ...flags, ...first, '-o', output, path, ...last];
  const { status, stderr } = spawnSync('gcc', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`gcc ${args.join(' ')}: ${stderr}`);
  return output;
}

const SUFFIXES = { program: '', library: '.so', object: '.o' } as const;

/** Builds a patch from the `-DPATCHED` compilation of a target; returns the program and the patch. */
export function compilePatch(
  source: string,
  flags: readonly string[] = [],
): { program: string; patch: string } {
  const sections = [...flags, '-ffunction-sections', '-fdata-sections'];
  const program = compile(source, 'program', flags);
  const orig = compile(source, 'object', sections);
  const patched = compile(source, 'object', [...sections, '-DPATCHED']);
  // Each patch file has an id of its own: one that another run rewrites meanwhile would be another patch.
  const patch = `${patched}.${process.pid}.lgp`;
  const built = livegraft(
    'build',
    '--orig',
    orig,
    '--patched',
    patched,
    '--target',
    program,
    '-o',
    patch,
    '--name',
    'test',
  );
  if (built.code !== 0) throw new Error(built.stderr);
  return { program, patch };
}

/** Builds a patch of a target from the compilation with these flags, under a name of its own. */
export function compilePatchOf(
  source: string,
  name: string,
  flags: readonly string[],
  options: readonly string[] = [],
): string {
  const sections = ['-ffunction-sections', '-fdata-sections'];
  const orig = compile(source, 'object', sections);
  const patched = compile(source, 'object', [...sections, ...flags]);
  const patch = `${patched}.${process.pid}.${name}.lgp`;
  const files = ['--orig', orig, '--patched', patched, '--target', compile(source, 'program')];
  const built = livegraft('build', ...files, '-o', patch, '--name', name, ...options);
  if (built.code !== 0) throw new Error(built.stderr);
  return patch;
}

let longestRunMs = 60_000;
/** For runs on a machine that may be crowded: a command that takes longer is killed. */
export function allowRuns(ms: number): void {
  longestRunMs = ms;
}

export interface Run {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** Lines of `--json`. */
  readonly lines: readonly Record<string, unknown>[];
}

const BIN = join(ROOT, 'bin', 'livegraft.js');
/** Those that its first line gives to Node.js. */
const FLAGS = (readFileSync(BIN, 'utf8').split('\n', 1)[0] ?? '')
  .split(' ')
  .filter((word) => word.startsWith('--'));

export function livegraft(...args: readonly string[]): Run {
  return livegraftUnder([], ...args);
}

/** Kills the command line (SIGKILL) a while after it has told of an event. */
export function killLivegraftAt(event: string, delayMs: number, ...args: readonly string[]): Promise<void> {
  const child = spawn(process.execPath, [join(ROOT, 'bin/livegraft.js'), ...args, '--json']);
  child.stdout.on('data', (bytes) => {
    if (String(bytes).includes(event)) setTimeout(() => child.kill('SIGKILL'), delayMs);
  });
  return new Promise((resolve) => child.on('exit', () => resolve()));
}

/** `launcher`: a program, with arguments, that executes what follows them. */
export function livegraftUnder(launcher: readonly string[], ...args: readonly string[]): Run {
  const [program = BIN, ...rest] = [...launcher, BIN, ...args];
  const { status, stdout, stderr, error } = spawnSync(program, rest, {
    encoding: 'utf8',
    timeout: longestRunMs,
    // Each try of a thread that has to wait is a line of --json.
    maxBuffer: 2 ** 26,
  });
  const lines = args.includes('--json') ? parseLines(stdout) : [];
  // Of a command that was killed for its time, above all.
  const problem = error === undefined ? '' : `${error}`;
  return { code: status ?? -1, stdout, stderr: stderr + problem, lines };
}

/** The same beside the test, which can send it signals meanwhile. */
export function startLivegraft(...args: readonly string[]): {
  readonly done: Promise<Run>;
  output(): string;
  signal(name: NodeJS.Signals): void;
  /** When it has said its first word, or has ended without one. */
  readonly begun: Promise<void>;
} {
  const child = spawn(BIN, [...args], { timeout: longestRunMs });
  let stdout = '';
  let stderr = '';
  const begun = new Promise<void>((resolve) => {
    child.stdout.once('data', () => resolve());
    child.once('close', () => resolve());
  });
  child.stdout.on('data', (bytes) => {
    stdout += bytes;
  });
  child.stderr.on('data', (bytes) => {
    stderr += bytes;
  });
  const done = new Promise<Run>((resolve) => {
    child.on('close', (code) => {
      const lines = args.includes('--json') ? parseLines(stdout) : [];
      resolve({ code: code ?? -1, stdout, stderr, lines });
    });
  });
  return { done, begun, output: () => stdout, signal: (name) => child.kill(name) };
}

function parseLines(text: string): Record<string, unknown>[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** Where a run of the command line is to be hurt: see `fault.mjs`. `step` counts from 1. */
export interface Fault {
  readonly kind: 'kill-before' | 'throw' | 'none';
  readonly step: number;
  /** At this step it is sent SIGQUIT, too. */
  readonly turnAt?: number;
}

/** Runs the command line with a fault. `steps` is how many it took, undefined when it was killed. */
export function hurtLivegraft(
  fault: Fault | undefined,
  ...args: readonly string[]
): { readonly code: number | 'killed'; readonly steps: number | undefined; readonly stderr: string } {
  mkdirSync(CACHE, { recursive: true });
  const counted = join(CACHE, `steps-${process.pid}`);
  rmSync(counted, { force: true });
  const preload = join(ROOT, 'test/support/fault.mjs');
  const { status, signal, stderr } = spawnSync(
    process.execPath,
    [...FLAGS, '--import', preload, BIN, ...args],
    {
      encoding: 'utf8',
      timeout: longestRunMs,
      env: {
        ...process.env,
        // As the launcher's first line does.
        NODE_EXTRA_CA_CERTS: undefined,
        LIVEGRAFT_FAULT: fault?.kind,
        LIVEGRAFT_FAULT_AT: String(fault?.step ?? 0),
        LIVEGRAFT_TURN_AT: String(fault?.turnAt ?? 0),
        LIVEGRAFT_FAULT_COUNT: counted,
      },
    },
  );
  const steps = existsSync(counted) ? Number(readFileSync(counted, 'utf8')) : undefined;
  return { code: signal === 'SIGKILL' && steps === undefined ? 'killed' : (status ?? -1), steps, stderr };
}

/** A command that goes on beside the test, to be killed before its step. */
export function startHurtLivegraft(
  step: number,
  ...args: readonly string[]
): { readonly done: Promise<'killed' | number>; output(): string; signal(name: NodeJS.Signals): void } {
  const preload = join(ROOT, 'test/support/fault.mjs');
  const child = spawn(process.execPath, [...FLAGS, '--import', preload, BIN, ...args], {
    timeout: longestRunMs,
    env: {
      ...process.env,
      NODE_EXTRA_CA_CERTS: undefined,
      LIVEGRAFT_FAULT: 'kill-before',
      LIVEGRAFT_FAULT_AT: String(step),
    },
  });
  let stdout = '';
  child.stdout.on('data', (bytes) => {
    stdout += bytes;
  });
  const done = new Promise<'killed' | number>((resolve) => {
    child.on('close', (code, signal) => resolve(signal === 'SIGKILL' ? 'killed' : (code ?? -1)));
  });
  return { done, output: () => stdout, signal: (name) => child.kill(name) };
}

export interface LiveTarget {
  readonly pid: number;
  output(): string;
  isAlive(): boolean;
  stop(): void;
}

let started = 0;

/** Starts a target through `setsid -f` (a child of Node would have its stops reaped by Node) and waits for "ready PID". */
export async function startTarget(program: string, ...args: readonly string[]): Promise<LiveTarget> {
  mkdirSync(CACHE, { recursive: true });
  const file = join(CACHE, `out-${process.pid}-${started++}`);
  spawnSync('sh', ['-c', `exec setsid -f "$@" > '${file}' 2>&1`, 'sh', program, ...args], {
    stdio: 'ignore',
  });
  for (let i = 0; i < 400; i++) {
    const pid = Number(/^ready (\d+)/m.exec(readFileSync(file, 'utf8'))?.[1]);
    if (pid > 0) {
      return {
        pid,
        output: () => readFileSync(file, 'utf8'),
        isAlive: () => isAlive(pid),
        stop() {
          if (isAlive(pid)) process.kill(pid, 'SIGKILL');
        },
      };
    }
    await pause(10);
  }
  throw new Error(`${program} did not start: ${readFileSync(file, 'utf8')}`);
}

function isAlive(pid: number): boolean {
  try {
    // A zombie that nobody has reaped yet is dead; a leader may be one while its threads live on.
    return readdirSync(`/proc/${pid}/task`).some((tid) => isTaskAlive(pid, tid));
  } catch {
    return false;
  }
}

function isTaskAlive(pid: number, tid: string): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/task/${tid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** What the target prints from now on: its second new line, since the first may have been on its way. Undefined when it prints no more. */
export async function nextLine(target: LiveTarget): Promise<string | undefined> {
  const linesOf = () => target.output().trimEnd().split('\n');
  // While a command was waited for, nothing was read of what the target printed.
  await pause(10);
  const known = linesOf().length;
  for (let i = 0; i < 1000 && target.isAlive(); i++) {
    const lines = linesOf();
    if (lines.length >= known + 2) return lines.pop();
    await pause(10);
  }
  return undefined;
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The memory map and a hash over all code: what must be as it was after a refusal or a revert. */
export function snapshot(pid: number): { maps: string; code: string } {
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8');
  const hash = createHash('sha256');
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  try {
    for (const line of maps.split('\n')) {
      const match = /^([0-9a-f]+)-([0-9a-f]+) r-xp .*\//.exec(line);
      if (match === null) continue;
      const start = Number.parseInt(match[1] as string, 16);
      const bytes = Buffer.alloc(Number.parseInt(match[2] as string, 16) - start);
      readSync(memory, bytes, 0, bytes.length, start);
      hash.update(bytes);
    }
  } finally {
    closeSync(memory);
  }
  return { maps, code: hash.digest('hex') };
}
