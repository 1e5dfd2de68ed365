import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** What binutils' objdump makes of single encodings. */
export interface Disassembled {
  /** Length in bytes of the instruction. */
  readonly lengthBytes: number;
  readonly text: string;
}

const RECORD_BYTES = 32;
/** Single-byte nops behind an encoding: whatever it decodes to, objdump is in step again at the next one. */
const NOP = 0x90;

/** Disassembles each encoding by itself, near branches with 66h as Intel's processors take them; of more than 15 bytes only the first 15 count. */
export function disassemble(encodings: readonly Uint8Array[]): Disassembled[] {
  const bytes = Buffer.alloc(encodings.length * RECORD_BYTES, NOP);
  for (const [i, encoding] of encodings.entries()) bytes.set(encoding.subarray(0, 15), i * RECORD_BYTES);
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-objdump-'));
  try {
    const file = join(folder, 'encodings');
    writeFileSync(file, bytes);
    const args = ['-D', '-b', 'binary', '-m', 'i386:x86-64', '-M', 'intel64', '-w', '--insn-width=15', file];
    const { status, stdout, stderr } = spawnSync('objdump', args, { encoding: 'utf8', maxBuffer: 2 ** 30 });
    if (status !== 0) throw new Error(`objdump: ${stderr}`);
    const lines = [...stdout.matchAll(/^\s*([0-9a-f]+):\t[0-9a-f ]+(?:\t(.*))?$/gm)];
    const found = new Map<number, Disassembled>();
    lines.forEach(([, at = '', text = ''], i) => {
      const start = Number.parseInt(at, 16);
      const next = lines[i + 1];
      const end = next === undefined ? bytes.length : Number.parseInt(next[1] as string, 16);
      found.set(start, { lengthBytes: end - start, text: text.trim() });
    });
    return encodings.map((encoding, i) => {
      const result = found.get(i * RECORD_BYTES);
      if (result === undefined)
        throw new Error(`objdump lost its step before ${Buffer.from(encoding).toString('hex')}`);
      return result;
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
