import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fetchDebianPackage } from '../debian-source.js';

export interface KernelSource {
  /** The source tree, for `--source`. */
  readonly source: string;
  /** The folder of the headers package, for `--headers`. */
  readonly headers: string;
}

/** What most fixes are not in, and half of the tree: drivers, other machines, documentation. */
const LEFT_OUT = ['drivers/*/*', 'Documentation', 'sound', 'tools/testing', 'rust', 'samples'];

/**
 * Fetches the source (140 MB) and the headers of one of Debian's kernels, by the names of their packages, and unpacks what
 * builds need (400 MB). Both are kept in the folder for temporary files for the next time.
 */
export function fetchKernelSource(release: string): KernelSource {
  const version = /^\d+\.\d+/.exec(release)?.[0] ?? '';
  const cache = join(tmpdir(), `livegraft-kernel-source-${process.getuid?.() ?? 0}`, release);
  const headers = join(cache, 'headers/tree/usr/src', `linux-headers-${release}`);
  const source = join(cache, 'source');
  if (!existsSync(source)) {
    const fetched = (name: string, folder: string) => {
      mkdirSync(join(cache, folder), { recursive: true });
      return fetchDebianPackage(name, join(cache, folder));
    };
    const tree = fetched(`linux-headers-${release}`, 'headers');
    // The headers lead to kbuild's programs by relative links.
    cpSync(fetched(`linux-kbuild-${version}`, 'kbuild'), tree, { recursive: true, verbatimSymlinks: true });
    const packed = join(fetched(`linux-source-${version}`, 'package'), 'usr/src');
    const archive = readdirSync(packed).find((name) => name.startsWith(`linux-source-${version}.tar`));
    if (archive === undefined) throw new Error(`linux-source-${version} holds no archive`);
    const draft = join(cache, `draft-${process.pid}`);
    mkdirSync(draft);
    const { status, stderr, error } = spawnSync(
      'tar',
      [
        ...['-xf', join(packed, archive), '-C', draft, '--strip-components=1'],
        ...LEFT_OUT.map((path) => `--exclude=linux-source-${version}/${path}`),
      ],
      { encoding: 'utf8' },
    );
    if (status !== 0) throw new Error(`tar: ${error?.message ?? stderr}`);
    renameSync(draft, source);
    rmSync(join(cache, 'package'), { recursive: true, force: true });
  }
  return { source, headers };
}
