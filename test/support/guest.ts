import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type CpioEntry, writeCpio } from './cpio.js';

/** Debian's cloud kernel, unmodified, as a guest of QEMU: no KVM needed, nothing installed. */

const CACHE = join(tmpdir(), `livegraft-kernel-${process.getuid?.() ?? 0}`);
const BUSYBOX = '/bin/busybox';

/** A guest is killed after this, whatever becomes of its test. */
const GUEST_SECONDS = 600;

export interface KernelPackage {
  /** `6.1.0-50-cloud-amd64` */
  readonly release: string;
  readonly vmlinuz: string;
  readonly modules: string;
}

/** Fetches the package of the current cloud kernel by name and unpacks it into a cache folder. */
export function fetchKernel(): KernelPackage {
  const unpacked = join(CACHE, 'image');
  if (!existsSync(unpacked)) {
    const folder = join(CACHE, `fetch-${process.pid}`);
    mkdirSync(folder, { recursive: true });
    const depends = run('apt-cache', 'depends', 'linux-image-cloud-amd64');
    const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
    if (name === undefined) throw new Error(`linux-image-cloud-amd64 depends on no kernel: ${depends}`);
    // The sandbox user of apt could not write into our folder.
    run('sh', '-c', `cd '${folder}' && apt-get -q -o APT::Sandbox::User=root download ${name}`);
    const file = readdirSync(folder).find((each) => each.endsWith('.deb')) as string;
    run('dpkg-deb', '-x', join(folder, file), join(folder, 'image'));
    if (!existsSync(unpacked)) renameSync(join(folder, 'image'), unpacked);
    rmSync(folder, { recursive: true, force: true });
  }
  const release = readdirSync(join(unpacked, 'lib/modules'))[0] as string;
  return {
    release,
    vmlinuz: join(unpacked, 'boot', `vmlinuz-${release}`),
    modules: join(unpacked, 'lib/modules', release),
  };
}

function run(command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout;
}

const INIT = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t devtmpfs dev /dev
echo 0 > /proc/sys/kernel/kptr_restrict
echo 1 > /proc/sys/kernel/printk
stty -echo
echo guest-is-ready
# As a script: an interactive shell takes the end of a task in its background, while it waits for a line, for the end of its input.
while :; do sh /dev/console; done
`;

export interface GuestOptions {
  /** Another kernel than that of the machine's own packages. */
  readonly kernel?: KernelPackage;
  readonly vcpus?: number;
  /** What the emulator takes for `-cpu`. */
  readonly cpu?: string;
  /** Programs and files to put into the guest, by path there. */
  readonly files?: (kernel: KernelPackage) => readonly { readonly path: string; readonly data: Uint8Array }[];
  /** More kernel arguments. */
  readonly append?: string;
  /** Whether the guest's memory is a file of ours as well. */
  readonly sharedMemory?: boolean;
  /** Whether the guest starts again when its kernel asks for it; else it ends. */
  readonly restarts?: boolean;
  /** Whether the guest's clock counts its instructions, one to a nanosecond: what it measures is then exact. For one CPU. */
  readonly countInstructions?: boolean;
}

export interface Guest {
  readonly kernel: KernelPackage;
  /** For `--gdb`. */
  readonly gdb: string;
  readonly memoryFile: string | undefined;
  /** Runs a shell command in the guest and returns what it prints. */
  run(command: string, timeoutMs?: number): Promise<string>;
  /** Waits until the guest, which starts again, has booted that often in all. */
  expectBoot(count: number): Promise<void>;
  /** Everything that came over the serial line. */
  console(): string;
  readonly hasEnded: boolean;
  stop(): void;
}

/** Boots to a shell. The guest dies with this process, with `stop`, or by itself after a while. */
export async function bootGuest(options: GuestOptions = {}): Promise<Guest> {
  const kernel = options.kernel ?? fetchKernel();
  const folder = mkdtempSync(join(tmpdir(), 'livegraft-guest-'));
  const socket = join(folder, 'gdb');
  const memoryFile = options.sharedMemory === true ? join(memoryFolder(folder), 'memory') : undefined;
  writeFileSync(join(folder, 'initramfs'), initramfs(kernel, options));
  const vcpus = options.vcpus ?? 1;
  const child = spawn(
    'timeout',
    [
      ...[
        '--kill-after=2',
        String(GUEST_SECONDS),
        'qemu-system-x86_64',
        '-accel',
        'tcg',
        '-cpu',
        options.cpu ?? 'max',
        '-smp',
        String(vcpus),
      ],
      ...['-m', '512M', '-nodefaults', '-no-user-config', '-display', 'none', '-serial', 'stdio'],
      ...(options.restarts === true ? [] : ['-no-reboot']),
      ...(memoryFile === undefined
        ? []
        : [
            ...['-object', `memory-backend-file,id=ram,size=512M,share=on,mem-path=${memoryFile}`],
            ...['-machine', 'pc,memory-backend=ram'],
          ]),
      ...(options.countInstructions === true ? ['-icount', 'shift=0,sleep=off'] : []),
      ...['-gdb', `unix:${socket},server=on,wait=off`],
      ...['-kernel', kernel.vmlinuz, '-initrd', join(folder, 'initramfs')],
      ...['-append', `console=ttyS0 quiet panic=-1 no_timer_check ${options.append ?? ''}`],
    ],
    { stdio: ['pipe', 'pipe', 'pipe'] },
  );
  const guest = new QemuGuest(child, folder, `unix:${socket}`, memoryFile, kernel);
  try {
    await guest.expectBoot(1);
  } catch (error) {
    guest.stop();
    throw error;
  }
  return guest;
}

const MEMORY_FOLDERS = '/dev/shm';

/**
 * Where a guest's memory lies: not on a disk, whose file system may keep a write waiting for a second. What a test left
 * there that was killed is removed.
 */
function memoryFolder(otherwise: string): string {
  if (!existsSync(MEMORY_FOLDERS)) return otherwise;
  for (const name of readdirSync(MEMORY_FOLDERS)) {
    const path = join(MEMORY_FOLDERS, name);
    if (!name.startsWith('livegraft-guest-')) continue;
    const { ctimeMs } = statSync(path, { throwIfNoEntry: false }) ?? { ctimeMs: Date.now() };
    if (Date.now() - ctimeMs > 2 * GUEST_SECONDS * 1000) rmSync(path, { recursive: true, force: true });
  }
  return mkdtempSync(join(MEMORY_FOLDERS, 'livegraft-guest-'));
}

function initramfs(kernel: KernelPackage, options: GuestOptions): Uint8Array {
  const directories = ['bin', 'proc', 'sys', 'tmp', 'dev', 'lib'];
  const entries: CpioEntry[] = [
    ...directories.map((path) => ({ path, mode: 0o40755 })),
    { path: 'dev/console', mode: 0o20600, device: [5, 1] },
    { path: 'bin/busybox', mode: 0o100755, data: readFileSync(BUSYBOX) },
    { path: 'bin/sh', mode: 0o120777, data: Buffer.from('busybox') },
    { path: 'init', mode: 0o100755, data: Buffer.from(INIT) },
    ...(options.files?.(kernel) ?? []).map(({ path, data }) => ({ path, mode: 0o100755, data })),
  ];
  return writeCpio(entries);
}

const READY = /^guest-is-ready/m;

let commands = 0;

class QemuGuest implements Guest {
  readonly gdb: string;
  readonly memoryFile: string | undefined;
  readonly kernel: KernelPackage;
  readonly #child: ChildProcess;
  readonly #folder: string;
  readonly #kill = () => this.#child.kill('SIGKILL');
  #output = '';
  #ended: string | undefined;

  constructor(
    child: ChildProcess,
    folder: string,
    gdb: string,
    memoryFile: string | undefined,
    kernel: KernelPackage,
  ) {
    this.#child = child;
    this.#folder = folder;
    this.gdb = gdb;
    this.memoryFile = memoryFile;
    this.kernel = kernel;
    const collect = (bytes: Buffer) => {
      this.#output += bytes.toString('utf8').replaceAll('\r', '');
    };
    child.stdout?.on('data', collect);
    child.stderr?.on('data', collect);
    child.stdin?.on('error', () => {});
    child.on('exit', (code, signal) => {
      // 124: its time was over; 128 and a signal: the emulator crashed; 0: the kernel restarted or powered off.
      this.#ended = `${signal ?? code}`;
    });
    process.on('exit', this.#kill);
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
  }

  async expectBoot(count: number): Promise<void> {
    for (let from = 0, boots = 0; boots < count; boots++) {
      await this.expectOutput(READY, 110_000, from);
      from = this.#output.indexOf('guest-is-ready', from) + 1;
    }
    // The shell's greeting is nobody's output.
    await this.run('true');
  }

  console(): string {
    return this.#output;
  }

  async run(command: string, timeoutMs = 20_000): Promise<string> {
    const number = ++commands;
    const from = this.#output.length;
    this.#child.stdin?.write(`${command}; echo; echo "done-${number}:$?"\n`);
    // With the end of the line: it would be the first of what the next command says.
    await this.expectOutput(new RegExp(`^done-${number}:\\d+\\n`, 'm'), timeoutMs, from);
    const text = this.#output.slice(from);
    return text.slice(0, text.indexOf(`done-${number}:`)).replace(/\n\n?$/, '\n');
  }

  async expectOutput(pattern: RegExp, timeoutMs: number, from = 0): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    // Only the end is looked at: the output may be megabytes.
    while (!pattern.test(this.#output.slice(Math.max(from, this.#output.length - 1000)))) {
      if (this.#ended !== undefined)
        throw new Error(`the guest ended (${this.#ended}): ${this.#output.slice(-2000)}`);
      if (Date.now() > deadline)
        throw new Error(`no ${pattern} within ${timeoutMs} ms: ${this.#output.slice(-2000)}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  stop(): void {
    process.off('exit', this.#kill);
    // `timeout` passes the signal on to qemu.
    this.#child.kill('SIGTERM');
    rmSync(this.#folder, { recursive: true, force: true });
    if (this.memoryFile !== undefined) rmSync(dirname(this.memoryFile), { recursive: true, force: true });
  }
}
