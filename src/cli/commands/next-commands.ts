import type { Direction } from '../../engine/target.js';

/** What names a kernel on the command line. */
export function kernelOptions({ gdb, vmlinux }: { readonly gdb: string; readonly vmlinux: string }): string {
  return `--gdb ${gdb} --vmlinux ${vmlinux}`;
}

/** How a transition that is not complete is gone on with, and turned around: whole commands, to be copied. */
export function nextCommands(
  direction: Direction,
  options: string,
  patchFile = 'FILE',
): { readonly go: string; readonly back: string } {
  const apply = `livegraft apply ${options} ${patchFile}`;
  const revert = `livegraft revert ${options}`;
  return direction === 'patch' ? { go: apply, back: revert } : { go: revert, back: apply };
}
