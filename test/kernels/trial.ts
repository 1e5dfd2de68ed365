import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { basename, join } from 'node:path';
import { hex } from '../../src/base/brand.js';
import { applyToKernel, revertFromKernel } from '../../src/cli/kernel-operations.js';
import { type KernelTaskStack, kernelStacks, kernelStatus, soak } from '../../src/cli/kernel-views.js';
import type { KernelImage } from '../../src/kernel-image/kernel-image.js';
import type { KernelSession } from '../../src/targets/kernel/kernel-session.js';
import type { Guest } from '../support/guest.js';
import { compileKernelObject } from '../support/kernel-objects.js';
import { withKernelSession } from '../support/kernel-session.js';
import { livegraft, ROOT } from '../support/live.js';
import { countReads, readLoadavg } from '../support/loadavg-reads.js';
import { stepThroughCalls } from './call-steps.js';
import { COMPAT_WAYS, CompatPrograms } from './compat-programs.js';
import { stepThroughEntries } from './entry-steps.js';
import { HalfDoneTransitions } from './half-done.js';

export interface Outcome {
  readonly what: string;
  readonly failed: boolean;
  readonly text: string;
}

interface Subject {
  readonly guest: Guest;
  readonly image: KernelImage;
  readonly vmlinux: string;
  /** Without, the kernel is of no package, and has no modules. */
  readonly headers: readonly string[] | undefined;
  readonly folder: string;
  /** Steps whose names hold this; all without. */
  readonly only?: string | undefined;
}

const ROUNDS = 25;
const MOST_LOOKS = 5;
const LEAST_COMPARED = 20;
const SOAK = { switches: 1000, timeoutMs: 60_000 };
const LOAD = '(while :; do cat /proc/version; ls /proc; done >/dev/null 2>&1) & sleep 0';
const TROUBLE = 'BUG:|WARNING:|Oops|Call Trace|general protection';

/** As kbuild compiles a file of the kernel, as far as headers and code ask for it; sections stay what a patch may have. */
const HEADER_FLAGS = [
  ...['-O2', '-c', '-nostdinc', '-std=gnu11', '-fms-extensions', '-fshort-wchar', '-D__KERNEL__', '-w'],
  ...['-fno-pic', '-mcmodel=kernel', '-mno-red-zone', '-mno-sse', '-mno-80387', '-fno-stack-protector'],
  ...['-fcf-protection=none', '-mindirect-branch=thunk-extern', '-mfunction-return=thunk-extern'],
  ...['-fno-strict-aliasing', '-fno-jump-tables', '-fasynchronous-unwind-tables'],
  '-DKBUILD_MODNAME="patch"',
];

/** Tries on one booted kernel what livegraft does with kernels. Each step counts for itself. */
export class KernelTrial {
  readonly #subject: Subject;
  readonly #outcomes: Outcome[] = [];

  constructor(subject: Subject) {
    this.#subject = subject;
  }

  async run(): Promise<readonly Outcome[]> {
    const { guest } = this.#subject;
    await this.#try('image', async () => this.#describeImage());
    await guest.run('for m in /lib/*.ko; do insmod $m; done');
    await this.#try('symbols', () => this.#compareSymbols());
    const isPackaged = this.#subject.headers !== undefined;
    if (isPackaged) await this.#try('modules', () => this.#compareModules());
    await this.#try('stacks when idle', () => this.#compareStacks());
    await guest.run(LOAD);
    await this.#try('stacks under load', () => this.#walkUnderLoad());
    // Without ORC tables most of it has no row.
    if (this.#hasOrc)
      await this.#try("stacks at each instruction of the kernel's entry code", () =>
        stepThroughEntries(this.#subject),
      );
    await this.#try('stacks at each instruction of calls', () => stepThroughCalls(this.#subject));
    await this.#try('soak', () => this.#soak());
    await this.#try('patch from one C file', () => this.#patch('cmdline.c', this.#shown, /^patched: /));
    if (isPackaged)
      await this.#try('patch against the headers package', () =>
        this.#patch('with-headers.c', this.#shown, /^cat is task \d+ of user 0: /),
      );
    await this.#try('patch of two functions that change together', () => this.#patchTogether());
    const together = { ...this.#subject, patch: this.#build('loadavg.c') };
    const halfDone = new HalfDoneTransitions(together);
    await this.#try("model lazy, at the kernel's edge", () => halfDone.lazy());
    if (isPackaged) {
      const compat = new CompatPrograms(together);
      for (const way of COMPAT_WAYS) await this.#try(`32-bit programs, by ${way}`, () => compat.try(way));
    }
    await this.#try('killed', () => halfDone.killed());
    await this.#try('turned around', () => halfDone.reversed());
    await this.#try('patch over displaced instructions', () =>
      this.#patch('uname.c', () => guest.run(`uname -r | grep -c ${guest.kernel.release}`), /^0/).catch(
        refusalOf('no-fentry'),
      ),
    );
    if (isPackaged) await this.#try("patch of a module's function", () => this.#patchModule());
    await this.#try("the kernel's log", async () => {
      const log = (await guest.run(`dmesg | grep -B 4 -E "${TROUBLE}" | head -12`)).trim();
      if (log !== '') throw new Error(log);
      return 'nothing';
    });
    return this.#outcomes;
  }

  async #try(what: string, use: () => Promise<string>): Promise<void> {
    if (!what.includes(this.#subject.only ?? '')) return;
    const startedAt = performance.now();
    const note = (failed: boolean, text: string) => {
      this.#outcomes.push({ what, failed, text });
      const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
      process.stderr.write(`${failed ? 'FAILED' : 'ok    '} ${what} (${seconds} s): ${text}\n`);
    };
    try {
      note(false, await use());
    } catch (error) {
      const { code, message, stack } = error as { code?: string; message: string; stack?: string };
      if (code === undefined) process.stderr.write(`${stack ?? ''}\n`);
      note(true, `${code ?? 'error'}: ${message}`);
    }
  }

  get #hasOrc(): boolean {
    return this.#subject.image.elf.findSection('.orc_unwind') !== undefined;
  }

  get #reference() {
    const { guest, vmlinux } = this.#subject;
    return { gdb: guest.gdb, vmlinux, guestMemory: guest.memoryFile };
  }

  #session<T>(use: (session: KernelSession) => Promise<T>): Promise<T> {
    return withKernelSession(this.#subject, use);
  }

  #describeImage(): string {
    const { image } = this.#subject;
    const layout = image.symbolSource.kind === 'kallsyms' ? image.symbolSource.layout : 'symtab';
    return `kallsyms ${layout}, ${image.btf.typeCount} types, ${image.exports.size} exports, ${image.exceptions.size} places that may fault`;
  }

  async #compareSymbols(): Promise<string> {
    const { image, guest } = this.#subject;
    const offset = await this.#session(async ({ kernel }) => kernel.offset);
    const lines = Array.from({ length: image.symbols.size }, (_, i) => {
      const { name, type, address } = image.symbols.at(i);
      const at = hex(address < 0 ? address + offset : address);
      return `${at.slice(2).padStart(16, '0')} ${type} ${name}\n`;
    });
    const ours = createHash('md5').update(lines.join('')).digest('hex');
    const sum = (await guest.run("grep -v '\\[' /proc/kallsyms | md5sum", 60_000)).slice(0, 32);
    if (ours !== sum) throw new Error(`${lines.length} symbols are not those of /proc/kallsyms`);
    return `${lines.length}, as in /proc/kallsyms; moved by ${hex(offset)}`;
  }

  async #compareModules(): Promise<string> {
    const { guest } = this.#subject;
    const modules = await this.#session(async (session) => session.modules);
    const listed = (await guest.run('cut -d" " -f1 /proc/modules')).trim().split('\n');
    if (`${modules.map(({ name }) => name)}` !== `${listed}`)
      throw new Error(`${modules.map(({ name }) => name)} are not ${listed}`);
    const counts: string[] = [];
    for (const { name, symbols, orc } of modules) {
      const ours = Array.from({ length: symbols.size }, (_, i) => symbols.at(i))
        .map((symbol) => `${hex(symbol.address).slice(2)} ${symbol.name}`)
        .sort();
      const text = await guest.run(`grep '\\[${name}' /proc/kallsyms`, 60_000);
      const theirs = [...text.matchAll(/^(\S+) \S (\S+)\t/gm)].map(([, at, symbol]) => `${at} ${symbol}`);
      if (`${ours}` !== `${theirs.sort()}`)
        throw new Error(`${name}: ${ours.length} symbols are not the ${theirs.length} of /proc/kallsyms`);
      if (orc.entries.length === 0) throw new Error(`${name} has no ORC table`);
      counts.push(`${name} (${symbols.size} symbols, ${orc.entries.length / 6} ORC rows)`);
    }
    return counts.join(', ');
  }

  /** Every sleeping task has the frames that the kernel prints; what runs now and then is looked at again. */
  async #compareStacks(): Promise<string> {
    const matched = new Set<number>();
    let differing: ReadonlyMap<number, string> = new Map();
    let text = '';
    for (let round = 0; round < MOST_LOOKS && (round === 0 || differing.size > 0); round++) {
      const { tasks, cpus } = await kernelStacks(this.#reference);
      const refused = tasks.filter((task) => !task.reliable);
      if (refused.length > 0)
        throw new Error(
          refused.map(({ name, reason }) => `${name}: ${reason?.code} ${reason?.detail}`).join('; '),
        );
      if (round === 0) text = `${tasks.length} tasks on ${cpus} CPUs, all reliable`;
      differing = await this.#compareWithPrinted(tasks, matched);
    }
    if (differing.size > 0) throw new Error([...differing.values()].join('; '));
    if (matched.size < LEAST_COMPARED) throw new Error(`only ${matched.size} tasks were compared`);
    return `${text}; ${matched.size} of them as in /proc/PID/stack`;
  }

  /** What differs, by pid, but for tasks in `matched`; those that don't differ go there. */
  async #compareWithPrinted(
    tasks: readonly KernelTaskStack[],
    matched: Set<number>,
  ): Promise<ReadonlyMap<number, string>> {
    const { guest, image } = this.#subject;
    const pids = tasks.filter((task) => task.pid > 1 && !matched.has(task.pid)).map((task) => task.pid);
    const printed = await guest.run(
      `for p in ${pids.join(' ')}; do echo "task $p"; cat /proc/$p/stack; done`,
      60_000,
    );
    // The kernel leaves out its scheduler's functions.
    const [low = 0, high = 0] = ['__sched_text_start', '__sched_text_end'].map(
      (name) => image.symbols.findUnique(name)?.address ?? 0,
    );
    const isPrinted = (symbol: string) => {
      const address = image.symbols.findAll(symbol.replace(/\+.*/, ''))[0]?.address ?? 0;
      return address < low || address >= high;
    };
    const differing = new Map<number, string>();
    for (const part of printed.split(/^task /m).slice(1)) {
      const task = tasks.find((each) => each.pid === Number.parseInt(part, 10));
      if (task === undefined) continue;
      const theirs = [...part.matchAll(/^\[<0>\] (\S+)\/0x[0-9a-f]+/gm)].map(([, symbol]) => symbol);
      const ours = task.frames.map(({ symbol = '' }) => symbol).filter(isPrinted);
      if (`${ours}` === `${theirs}`) matched.add(task.pid);
      // Others run all the time.
      else if (!/^kworker|^rcu|^sh$/.test(task.name))
        differing.set(task.pid, `${task.name}: ${ours.join(' ')} is not ${theirs.join(' ')}`);
    }
    return differing;
  }

  async #walkUnderLoad(): Promise<string> {
    let walked = 0;
    let between = 0;
    let interrupted = 0;
    const refused: string[] = [];
    await this.#session(async ({ client, tasks, stacks }) => {
      for (let round = 0; round < ROUNDS; round++) {
        const cpus = await tasks.cpus();
        for (const task of await tasks.tasks(cpus)) {
          const walk = await stacks.walk(task, cpus);
          walked++;
          if (walk.reliable) continue;
          if (walk.reason.code === 'between-cpus') between++;
          // Where code was interrupted, a frame pointer says nothing for certain.
          else if (walk.reason.code === 'no-unwind-row' && !this.#hasOrc && task.isOnCpu) interrupted++;
          else refused.push(`${task.name}: ${walk.reason.code} ${walk.reason.detail}`);
        }
        client.resume();
        await client.waitForStop(10 + round);
        await client.interrupt();
      }
    });
    if (refused.length > 0) throw new Error([...new Set(refused)].join('; '));
    return `${walked} walks in ${ROUNDS} stops, ${interrupted} unreliable, ${between} between CPUs`;
  }

  async #soak(): Promise<string> {
    const signal = new AbortController().signal;
    const report = await soak(this.#reference, { ...SOAK, signal, onProgress: () => {} });
    const { switches, unreliable, tasks, kthreads, findings } = report;
    // Without tables, code that faulted in the middle may not have set up its frame: that is refused, and tried again.
    const mayRefuse = this.#subject.headers === undefined;
    if (findings.some(({ cause }) => !(mayRefuse && cause === 'no-unwind-row')))
      throw new Error(JSON.stringify(findings));
    return `${switches} context switches of ${tasks} tasks (${kthreads} kernel threads), ${unreliable} unreliable`;
  }

  readonly #shown = () => this.#subject.guest.run('cat /proc/cmdline');

  /** Compiles and builds a patch; returns its path and its name. */
  #build(source: string, ...more: readonly string[]): { readonly path: string; readonly name: string } {
    const { folder, vmlinux } = this.#subject;
    const object =
      source === 'with-headers.c'
        ? this.#compileWithHeaders(source)
        : compileKernelObject(folder, source, '-DANY_VERSION');
    const path = object.replace(/\.o$/, '.lgp');
    const run = livegraft('build', '--replacement', object, '--target', vmlinux, '-o', path, ...more);
    if (run.code !== 0) throw new Error(`build: ${run.stdout}${run.stderr}`);
    return { path, name: basename(path, '.lgp') };
  }

  #compileWithHeaders(source: string): string {
    const { headers, folder } = this.#subject;
    const [own = '', common = ''] = headers ?? [];
    const includes = [common, own].flatMap((tree) =>
      ['arch/x86/include', 'arch/x86/include/generated', 'include', 'arch/x86/include/uapi']
        .concat(['arch/x86/include/generated/uapi', 'include/uapi', 'include/generated/uapi'])
        .flatMap((path) => ['-I', join(tree, path)]),
    );
    const first = ['linux/compiler-version.h', 'linux/kconfig.h', 'linux/compiler_types.h'].flatMap(
      (name) => [
        '-include',
        name === 'linux/compiler-version.h' ? 'generated/autoconf.h' : join(common, 'include', name),
      ],
    );
    const object = join(folder, source.replace(/\.c$/, '.o'));
    const path = join(ROOT, 'test/targets/kernel', source);
    // The compiler's own headers: 5.10 includes stdarg.h.
    const { stdout } = spawnSync('gcc', ['-print-file-name=include'], { encoding: 'utf8' });
    const command = [...HEADER_FLAGS, '-isystem', stdout.trim(), ...includes, ...first, '-o', object, path];
    const { status, stderr } = spawnSync('gcc', command, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`gcc: ${stderr.split('\n').slice(0, 12).join('\n')}`);
    return object;
  }

  #options() {
    const signal = new AbortController().signal;
    return { ...this.#reference, model: 'hybrid' as const, timeoutMs: 30_000, signal, onEvent: () => {} };
  }

  async #applied(path: string): Promise<string> {
    const { result, guest } = await applyToKernel({ ...this.#options(), patchPath: path });
    if (result.kind !== 'complete') throw new Error(`apply: ${JSON.stringify(result)}`);
    return `${result.tasks} tasks in ${Math.round(result.durationMs)} ms, ${guest.stops} stops`;
  }

  async #revert(name: string): Promise<void> {
    const { result } = await revertFromKernel({ ...this.#options(), patch: name });
    if (result.kind !== 'complete') throw new Error(`revert: ${JSON.stringify(result)}`);
  }

  async #patch(source: string, look: () => Promise<string>, patched: RegExp): Promise<string> {
    const patch = this.#build(source);
    const before = await look();
    const text = await this.#applied(patch.path);
    const during = await look();
    if (!patched.test(during)) throw new Error(`shows ${during}`);
    const { patches } = await kernelStatus(this.#reference, false);
    const entries = patches.flatMap(({ functions }) => functions.map(({ entry }) => entry));
    if (!entries.every((entry) => entry === 'redirected')) throw new Error(`status: ${entries}`);
    await this.#revert(patch.name);
    const after = await look();
    if (after !== before) throw new Error(`reverted, it shows ${after}`);
    return `${text}; reverted`;
  }

  /** A task that sees one function old and the other new is counted by what it then prints. */
  async #patchTogether(): Promise<string> {
    const { guest } = this.#subject;
    const { path, name } = this.#build('loadavg.c');
    await guest.run(readLoadavg('/tmp/seen'));
    const text = await this.#applied(path);
    await guest.run('while ! grep -q "both are new" /tmp/seen; do sleep 0.1; done', 60_000);
    await this.#revert(name);
    await guest.run('touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done', 60_000);
    const { both, mixed } = await countReads(guest, '/tmp/seen');
    if (both === 0 || mixed !== 0) throw new Error(`${both} reads saw both, ${mixed} a mix`);
    return `${text}; ${both} reads saw both new, 0 a mix`;
  }

  async #patchModule(): Promise<string> {
    const { guest, folder } = this.#subject;
    const file = join(folder, 'binfmt_misc.ko');
    await guest.run('mkdir -p /tmp/m; mount -t binfmt_misc none /tmp/m');
    const { path, name } = this.#build('binfmt.c', '--module', file);
    const text = await this.#applied(path);
    const shown = await guest.run('cat /tmp/m/status');
    await this.#revert(name);
    const after = await guest.run('cat /tmp/m/status');
    if (!shown.startsWith('patched: ') || after.startsWith('patched'))
      throw new Error(`shows ${shown}, then ${after}`);
    return `${text}; reverted`;
  }
}

/** To refuse is right, too, where a kernel does not say enough. */
function refusalOf(code: string): (error: unknown) => string {
  return (error) => {
    if ((error as { readonly code?: unknown }).code !== code) throw error;
    return `refused (${code}): ${(error as Error).message}`;
  };
}
