import { spawnSync } from 'node:child_process';
import { LivegraftError } from '../base/errors.js';
import type { KernelImage } from '../kernel-image/kernel-image.js';

/** `gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0` of a banner: what the kernel's build asked its compiler for. */
export function compilerOfBanner(banner: string): string | undefined {
  return /^Linux version \S+ \([^()]*\) \(((?:\S*gcc|\S*clang)\S* \(.*?\) [\d.]+|\S*clang version .*?)(?:, |\) #)/.exec(
    banner,
  )?.[1];
}

/** The command of the compiler that made the kernel; refused by name when it is not that very version. */
export function expectCompiler(image: KernelImage): string {
  const wanted = compilerOfBanner(image.banner);
  const command = wanted?.split(' ')[0];
  if (wanted === undefined || command === undefined || !/gcc/.test(command)) {
    throw new LivegraftError('compiler-unknown', `${image.source} was not made by a gcc: ${image.banner}`, {
      remedy: 'patches are built with the compiler of the kernel, which must be a gcc',
    });
  }
  const { stdout, error } = spawnSync(command, ['--version'], {
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C' },
  });
  const found = error === undefined ? (stdout.split('\n')[0] ?? '') : undefined;
  if (found !== wanted) {
    throw new LivegraftError(
      'compiler-differs',
      `the kernel was compiled by ${wanted}, but ${found === undefined ? `there is no ${command}` : `here is ${found}`}`,
      {
        remedy: 'install the very package that the kernel was compiled with',
        details: { wanted, found: found ?? '' },
      },
    );
  }
  return command;
}
