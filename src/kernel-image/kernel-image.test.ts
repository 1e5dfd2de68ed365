import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { parseKernelImage } from './kernel-image.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-image-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('parseKernelImage', () => {
  it.each([
    ['some other program', 'some program', 'is no Linux kernel'],
    ['a kernel without types', 'Linux version 6.1.0', 'has no .BTF'],
  ])('says of %s what it is not', (_, text, why) => {
    const path = join(folder, 'program.c');
    writeFileSync(path, `const char banner[] = "${text}"; int main(void) { return 0; }`);
    const { status, stderr } = spawnSync('gcc', ['-o', `${path}.out`, path], { encoding: 'utf8' });
    if (status !== 0) throw new Error(stderr);
    expect(() => parseKernelImage(readFileSync(`${path}.out`), 'vmlinux')).toThrow(
      expect.objectContaining({
        code: 'kernel-image-incomplete',
        message: `vmlinux ${why}`,
        remedy: expect.any(String),
      }),
    );
  });
});
