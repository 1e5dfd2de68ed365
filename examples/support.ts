import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What the demos share: starting programs that are nobody's children, talking to them, and cleaning up by pid. */

export const ROOT = join(dirname(fileURLToPath(import.meta.url)), '..');

export function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function heading(text: string): void {
  say(`\n== ${text}`);
}

/** Thrown for a step whose outcome is not what the demo is there to show. */
export function expect(condition: boolean, what: string): void {
  if (!condition) throw new Error(`the demo failed: ${what}`);
}

export function makeWorkFolder(): string {
  return mkdtempSync(join(tmpdir(), 'livegraft-demo-'));
}

/** Runs a program to its end; throws with its output when it fails. */
export function runQuietly(command: string, args: readonly string[], cwd: string): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} failed:\n${stdout}${stderr}`);
  return stdout;
}

/** Runs `livegraft` with its output shown. Returns its exit code. */
export function livegraft(...args: readonly string[]): number {
  say(`$ livegraft ${args.join(' ')}`);
  const bin = join(ROOT, 'bin', 'livegraft.js');
  return spawnSync(process.execPath, [bin, ...args], { stdio: 'inherit' }).status ?? 1;
}

/**
 * Starts a program in a session of its own through `setsid -f`: a child of Node's would have its ptrace stops reaped
 * by Node. Its first line of output is returned.
 */
export async function startDetached(
  folder: string,
  name: string,
  command: readonly string[],
): Promise<string> {
  const output = join(folder, `${name}.out`);
  const shell = `exec setsid -f "$@" > '${output}' 2>&1`;
  spawnSync('sh', ['-c', shell, 'sh', ...command], { stdio: 'ignore' });
  for (let i = 0; i < 200; i++) {
    const [line, more] = readFileSync(output, 'utf8').split('\n');
    if (line !== undefined && more !== undefined) return line;
    await pause(25);
  }
  throw new Error(`${name} did not start: ${readFileSync(output, 'utf8')}`);
}

export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Starts a load program; `stop` ends it and gives the JSON that it prints last. */
export function startLoad(command: readonly string[]): { stop: () => Promise<unknown> } {
  const [program, ...args] = command;
  const child = spawn(program as string, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.on('data', (data: Buffer) => {
    text += data.toString();
  });
  const ended = new Promise<void>((resolve) => child.on('close', () => resolve()));
  return {
    async stop() {
      child.kill('SIGTERM');
      await ended;
      const last = text.trimEnd().split('\n').pop() ?? '';
      return JSON.parse(last) as unknown;
    },
  };
}

/** Sends one line and returns the first line of the answer. */
export function ask(port: number, line: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(`${line}\n`));
    let text = '';
    socket.setTimeout(5000, () => socket.destroy(new Error(`no answer to ${line}`)));
    socket.on('data', (data) => {
      text += data.toString('latin1');
      const end = text.indexOf('\n');
      if (end < 0) return;
      resolve(text.slice(0, end));
      socket.end();
    });
    socket.on('error', reject);
  });
}

export function endProcess(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(pid, 'SIGTERM');
  } catch {
    // It has ended by itself.
  }
}

export function removeFolder(folder: string): void {
  rmSync(folder, { recursive: true, force: true });
}
