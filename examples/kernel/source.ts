import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
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
  const fetched = (name: string, folder: string, packageVersion?: string) => {
    mkdirSync(join(cache, folder), { recursive: true });
    return fetchDebianPackage(name, join(cache, folder), packageVersion);
  };
  const tree = fetched(`linux-headers-${release}`, 'headers');
  // The headers lead to kbuild's programs by relative links.
  if (!existsSync(join(tree, 'usr/lib', `linux-kbuild-${version}`)))
    cpSync(fetched(`linux-kbuild-${version}`, 'kbuild'), tree, { recursive: true, verbatimSymlinks: true });
  const packageVersion = versionOfPackage(join(tree, 'usr/share/doc', `linux-headers-${release}`));
  const source = join(cache, `source-${packageVersion}`);
  if (!existsSync(source)) {
    const packed = join(fetched(`linux-source-${version}`, 'package', packageVersion), 'usr/src');
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

/** The version of a package, by the folder of its documentation. There may be newer sources than what the kernel was made from. */
function versionOfPackage(documentation: string): string {
  const changes = gunzipSync(readFileSync(join(documentation, 'changelog.Debian.gz'))).toString();
  const version = /^\S+ \((\S+)\)/.exec(changes)?.[1];
  if (version === undefined) throw new Error(`${documentation} does not say which version the package has`);
  return version;
}
