import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fetchDebianPackage } from '../../examples/debian-source.js';
import type { KernelPackage } from './guest.js';

/** Of Debian 12, whose own compiler builds it. */
const PACKAGE = 'linux-source-6.1';
const CACHE = join(tmpdir(), `livegraft-frame-pointer-${process.getuid?.() ?? 0}`);
const BUILD_TIMEOUT_MS = 3_600_000;

/** What neither the configuration below nor Kconfig reads: half of the tree. */
const LEFT_OUT = [
  ...['Documentation/*/*', 'arch/*/boot/dts/*', 'tools/testing/*'],
  ...['gpu', 'net/*', 'media', 'staging', 'infiniband', 'scsi', 'usb'].map(
    (name) => `drivers/${name}/*.[ch]`,
  ),
  ...['sound/*.[ch]', 'fs/xfs/*.[ch]', 'fs/btrfs/*.[ch]'],
];

/** Besides `make tinyconfig`: what a guest of the tests and livegraft need, and frame pointers in place of ORC tables. */
const OPTIONS = [
  ...[
    '64BIT',
    'SMP',
    'PCI',
    'ACPI',
    'HIGH_RES_TIMERS',
    'PREEMPT_VOLUNTARY',
    'KERNEL_GZIP',
    'RELOCATABLE',
    'RANDOMIZE_BASE',
  ],
  ...['PRINTK', 'BUG', 'TTY', 'SERIAL_8250', 'SERIAL_8250_CONSOLE', 'BLK_DEV_INITRD', 'RD_GZIP'],
  ...['BINFMT_ELF', 'BINFMT_SCRIPT', 'PROC_FS', 'PROC_SYSCTL', 'SYSFS', 'SHMEM', 'TMPFS', 'DEVTMPFS'],
  ...['MULTIUSER', 'POSIX_TIMERS', 'FUTEX', 'EPOLL', 'SIGNALFD', 'EVENTFD', 'NET', 'UNIX'],
  ...['MODULES', 'MODULE_UNLOAD', 'KALLSYMS', 'KALLSYMS_ALL', 'STRICT_KERNEL_RWX', 'VMAP_STACK'],
  ...['DEBUG_KERNEL', 'DEBUG_FS', 'DEBUG_INFO_DWARF5', 'BPF_SYSCALL', 'DEBUG_INFO_BTF', 'STACKTRACE'],
  ...['DETECT_HUNG_TASK', 'FTRACE', 'FUNCTION_TRACER', 'DYNAMIC_FTRACE', 'UNWINDER_FRAME_POINTER'],
  ...['CC_OPTIMIZE_FOR_PERFORMANCE', 'CPU_MITIGATIONS', 'RETPOLINE', 'RETHUNK'],
];

/**
 * Builds a small kernel with frame pointers from Debian's source package (140 MB, 800 MB unpacked and built; some minutes). Kept in the
 * folder for temporary files for the next time.
 */
export function buildFramePointerKernel(): KernelPackage {
  const output = join(CACHE, 'output');
  const done = join(CACHE, 'is-built');
  if (!existsSync(done)) {
    mkdirSync(output, { recursive: true });
    const source = unpackSource();
    const make = (...args: string[]) => run('make', '-s', '-C', source, `O=${output}`, ...args);
    make('tinyconfig');
    const configuration = join(output, '.config');
    const named = new Set(OPTIONS);
    const kept = readFileSync(configuration, 'utf8')
      .split('\n')
      .filter((line) => !named.has(/CONFIG_(\w+)/.exec(line)?.[1] ?? ''));
    writeFileSync(configuration, [...kept, ...OPTIONS.map((name) => `CONFIG_${name}=y`), ''].join('\n'));
    make('olddefconfig');
    const taken = readFileSync(configuration, 'utf8');
    const missing = OPTIONS.filter((name) => !taken.includes(`\nCONFIG_${name}=y\n`));
    if (missing.length > 0) throw new Error(`the kernel's configuration takes no ${missing.join(', ')}`);
    make(`-j${availableParallelism()}`, 'bzImage');
    writeFileSync(done, '');
  }
  const release = readFileSync(join(output, 'include/config/kernel.release'), 'utf8').trim();
  return { release, vmlinuz: join(output, 'arch/x86/boot/bzImage'), modules: join(output, 'no-modules') };
}

function unpackSource(): string {
  const source = join(CACHE, 'source');
  if (existsSync(source)) return source;
  const fetched = join(CACHE, 'package');
  mkdirSync(fetched, { recursive: true });
  const packed = join(fetchDebianPackage(PACKAGE, fetched), 'usr/src');
  const archive = readdirSync(packed).find((name) => name.startsWith(`${PACKAGE}.tar`));
  if (archive === undefined) throw new Error(`${PACKAGE} holds no archive`);
  const draft = join(CACHE, `draft-${process.pid}`);
  mkdirSync(draft);
  run(
    ...(['tar', '-xf', join(packed, archive), '-C', draft, '--strip-components=1', '--wildcards'] as const),
    ...LEFT_OUT.map((path) => `--exclude=${PACKAGE}/${path}`),
  );
  renameSync(draft, source);
  rmSync(fetched, { recursive: true, force: true });
  return source;
}

function run(command: string, ...args: readonly string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8', timeout: BUILD_TIMEOUT_MS });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr.slice(-3000)}`);
}
