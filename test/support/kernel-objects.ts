import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { ROOT } from './live.js';

/** As a kernel is compiled, as far as it matters to a patch (docs/kernel.md). */
const FLAGS = [
  ...['-O2', '-c', '-ffreestanding', '-fno-pic', '-mcmodel=kernel', '-mno-red-zone', '-mgeneral-regs-only'],
  ...['-fno-stack-protector', '-fcf-protection=none', '-fno-strict-aliasing', '-fno-jump-tables'],
  ...[
    '-mindirect-branch=thunk-extern',
    '-mfunction-return=thunk-extern',
    '-fasynchronous-unwind-tables',
    '-w',
  ],
  ...['-I', join(ROOT, 'include')],
];

/** Compiles a file of `test/targets/kernel` into `folder`; returns the object's path. */
export function compileKernelObject(folder: string, source: string, ...flags: readonly string[]): string {
  const object = join(folder, `${source.replace(/\.c$/, '')}${flags.join('')}.o`);
  const path = join(ROOT, 'test/targets/kernel', source);
  const { status, stderr } = spawnSync('gcc', [...FLAGS, ...flags, '-o', object, path], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return object;
}
