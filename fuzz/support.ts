import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ParseError } from '../src/base/errors.js';
import { parseElf } from '../src/elf/reader.js';

/** Something that reads bytes which may be anything. */
export interface FuzzTarget {
  readonly name: string;
  /** How many cases `npm test` tries. */
  readonly cases: number;
  readonly seeds: () => readonly Uint8Array[] | Promise<readonly Uint8Array[]>;
  /** Throws whatever bad input may not lead to. */
  readonly read: (bytes: Uint8Array) => void | Promise<void>;
  /** What a refusal is, where it is no ParseError. */
  readonly refusal?: new (
    ...args: never
  ) => Error;
}

/** Whether bytes were read or refused; rejects with what is neither. */
export async function tryBytes(target: FuzzTarget, bytes: Uint8Array): Promise<'read' | 'refused'> {
  try {
    await target.read(bytes);
    return 'read';
  } catch (error) {
    if (!(error instanceof (target.refusal ?? ParseError))) throw error;
    return 'refused';
  }
}

export const folder = mkdtempSync(join(tmpdir(), 'livegraft-fuzz-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

export function run(command: string, args: readonly string[], input?: Uint8Array): Uint8Array {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: folder, input, maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return new Uint8Array(stdout);
}

export function once<T>(make: () => T): () => T {
  let made: T | undefined;
  return () => {
    made ??= make();
    return made;
  };
}

export function readBytes(path: string): Uint8Array {
  return new Uint8Array(readFileSync(path));
}

export const C_SOURCE = (k: number) => `
struct inner { char a; long b; };
struct outer { struct inner in[3]; unsigned low : 3; struct outer *next; void (*call)(int); } head;
int table[4];
int other(int);
__attribute__((noinline)) int work(int n) {
  switch (n) { case 0: return other(1); case 1: return table[n & 3]; case 2: return other(n) + ${k};
    case 3: return other(7) * 2; case 4: return head.low; case 5: return other(5) - 9; }
  return n * ${k};
}
`;
export const MAIN =
  'int work(int); int other(int n) { return n; } int main(int n, char **v) { return work(n); }';

/** A path in the folder, made by compiling `source`. */
export function compile(name: string, source: string, ...flags: string[]): string {
  // One name for all: a patch's objects are paired by it.
  const file = join(folder, 'a.c');
  writeFileSync(file, source);
  run('gcc', ['-O2', ...flags, '-o', name, file]);
  return join(folder, name);
}

export function sectionsOf(path: string, ...names: string[]): Uint8Array[] {
  const elf = parseElf(readFileSync(path), path);
  return names.map((name) => new Uint8Array(elf.findSection(name)?.data ?? []));
}

/** Several byte strings in one, and apart again: lengths first. Damage to a length moves the border. */
export function pack(parts: readonly Uint8Array[]): Uint8Array {
  const head = new Uint32Array(parts.map((part) => part.length));
  return new Uint8Array(Buffer.concat([new Uint8Array(head.buffer), ...parts]));
}

export function unpack(bytes: Uint8Array, count: number): Uint8Array[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = Math.min(4 * count, bytes.length);
  return Array.from({ length: count }, (_, i) => {
    const size = bytes.length >= 4 * count ? view.getUint32(4 * i, true) : 0;
    const part = bytes.slice(at, Math.min(at + size, bytes.length));
    at += part.length;
    return part;
  });
}
