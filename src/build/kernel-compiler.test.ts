import { describe, expect, it } from 'vitest';
import type { KernelImage } from '../kernel-image/kernel-image.js';
import { compilerOfBanner, expectCompiler } from './kernel-compiler.js';

describe('compilerOfBanner', () => {
  it.each([
    [
      'Linux version 6.1.0-50-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40) #1 SMP',
      'gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0',
    ],
    [
      'Linux version 5.15.0-91-generic (buildd@a) (gcc (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0, GNU ld (GNU Binutils for Ubuntu) 2.38) #101 SMP',
      'gcc (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0',
    ],
    ['Linux version 6.8 (a@b) (clang version 17.0.6, LLD 17.0.6) #1', 'clang version 17.0.6'],
    ['Linux version 6.8', undefined],
  ])('%s', (banner, compiler) => {
    expect(compilerOfBanner(banner)).toBe(compiler);
  });
});

describe('expectCompiler', () => {
  const image = (compiler: string) =>
    ({ source: 'vmlinuz', banner: `Linux version 6.1 (a@b) (${compiler}, GNU ld 2.40) #1` }) as KernelImage;

  it('refuses another version, or none, by name', () => {
    expect(() => expectCompiler(image('gcc-99 (Debian 99.1.0-1) 99.1.0'))).toThrow(
      'gcc-99 (Debian 99.1.0-1) 99.1.0, but there is no gcc-99',
    );
    expect(() => expectCompiler(image('gcc (Nobody 1.0) 1.0.0'))).toThrow(
      /gcc \(Nobody 1\.0\) 1\.0\.0, but here is gcc/,
    );
    expect(() => expectCompiler(image('clang version 17.0.6'))).toThrow('was not made by a gcc');
  });
});
