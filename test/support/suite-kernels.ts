import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DebianSuite } from '../../examples/debian-source.js';
import type { KernelPackage } from './guest.js';

/** Debian's suites, by what they are called in an archive, oldest kernel first. */
export const KERNEL_SUITES = ['bullseye', 'bookworm', 'trixie', 'sid'] as const;

/** The newer ones have the kernel and its modules in packages of their own, which the image's package depends on. */
const PARTS = ['linux-binary-', 'linux-modules-'];

/**
 * The current cloud kernel of another suite than the machine's, which need not have its packages: the suite's packages are
 * fetched by name from the mirror that the machine uses. Kept in the folder for temporary files for the next time.
 */
export function fetchSuiteKernel(suite: string): KernelPackage {
  const { debian, name } = openSuite(suite);
  const tree = debian.fetch(name, 'image');
  if (!existsSync(join(tree, 'boot')))
    // They put the kernel beside its modules.
    for (const part of PARTS) debian.fetch(debian.dependencyOf(name, part), 'image');
  const modules = ['lib/modules', 'usr/lib/modules'].map((path) => join(tree, path)).find(existsSync);
  const release = modules && readdirSync(modules)[0];
  if (modules === undefined || release === undefined) throw new Error(`${name} of ${suite} has no modules`);
  const places = [join(tree, 'boot', `vmlinuz-${release}`), join(modules, release, 'vmlinuz')];
  const vmlinuz = places.find(existsSync);
  if (vmlinuz === undefined) throw new Error(`${name} of ${suite} has no kernel`);
  return { release, vmlinuz, modules: join(modules, release) };
}

/** The folders of what C files of the kernel include, with the configured ones first. */
export function fetchSuiteHeaders(suite: string, release: string): readonly string[] {
  const { debian } = openSuite(suite);
  const own = `linux-headers-${release}`;
  const tree = join(debian.fetch(own, 'headers'), 'usr/src');
  const common = debian.dependencyOf(own, 'linux-headers-');
  debian.fetch(common, 'headers');
  return [own, common].map((name) => join(tree, name));
}

function openSuite(suite: string): { readonly debian: DebianSuite; readonly name: string } {
  const folder = join(tmpdir(), `livegraft-suites-${process.getuid?.() ?? 0}`, suite);
  mkdirSync(folder, { recursive: true });
  const debian = new DebianSuite(suite, folder);
  return { debian, name: debian.dependencyOf('linux-image-cloud-amd64', 'linux-image-') };
}
