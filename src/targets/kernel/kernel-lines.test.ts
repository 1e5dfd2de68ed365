import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { parseElf } from '../../elf/reader.js';
import { KernelLines } from './kernel-lines.js';

/** Where kernels are linked to. */
const TEXT = '0xffffffff81000000';
const SOURCE = `
int first(int a)
{
	return a * 3;
}

int second(int a)
{
	return first(a) + 1;
}
`;

it('names the source lines of code at kernel addresses as addr2line does, and none without a table', () => {
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-lines-'));
  const run = (command: string, ...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
    return stdout;
  };
  try {
    writeFileSync(join(folder, 'lines.c'), SOURCE);
    run('gcc', '-g', '-O1', '-c', '-fno-pic', '-mcmodel=kernel', '-fno-inline', '-o', 'lines.o', 'lines.c');
    run('ld', '-e', 'first', `-Ttext=${TEXT}`, '-o', 'vmlinux', 'lines.o');
    const elf = parseElf(readFileSync(join(folder, 'vmlinux')), 'vmlinux');
    const lines = new KernelLines(elf);
    const text = elf.findSection('.text');
    if (text === undefined) throw new Error('no text');
    expect(text.address).toBeLessThan(0);
    const at = Array.from({ length: text.sizeBytes }, (_, i) => text.address + i);
    const hexadecimal = at.map((address) => BigInt.asUintN(64, BigInt(address)).toString(16));
    const theirs = run('addr2line', '-e', 'vmlinux', ...hexadecimal)
      .trim()
      .split('\n');
    expect(at.map((address) => lines.at(address)).map((line) => `${line?.file}:${line?.line}`)).toEqual(
      theirs.map((line) => line.replace(/ \(discriminator \d+\)$/, '')),
    );
    expect(lines.at(text.address - 1)).toBeUndefined();
    run('strip', '--strip-debug', 'vmlinux');
    const stripped = new KernelLines(parseElf(readFileSync(join(folder, 'vmlinux')), 'vmlinux'));
    expect(stripped.at(text.address)).toBeUndefined();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
