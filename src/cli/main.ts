import { Argument, Command, CommanderError, Option } from 'commander';
import { LivegraftError } from '../base/errors.js';
import type { ConsistencyModel } from '../engine/target.js';
import { yieldHelperThreads } from '../targets/process/own-runtime.js';
import {
  parseAgree,
  parseCount,
  parseKernelRelease,
  parsePid,
  parseSeconds,
  parseSeed,
  parseSwitches,
} from './arguments.js';
import type { CombineOptions } from './commands/combine.js';
import type { ValidateCommandOptions } from './commands/validate.js';
import { type BuildCommandOptions, EXIT, VALIDATE_EXIT, VERSION } from './conventions.js';
import { type Io, processIo } from './io.js';
import { createOutput, type Output } from './output.js';

interface GlobalOptions {
  readonly json?: boolean;
  readonly quiet?: boolean;
  readonly color: boolean;
}

/** Runs one command line (without node and script). Returns the exit code; writes only through `io`. */
export async function main(argv: readonly string[], io: Io): Promise<number> {
  const outcome: { code: number } = { code: EXIT.done };
  const program = createProgram(io, (code) => {
    outcome.code = code;
  });
  try {
    await program.parseAsync(argv as string[], { from: 'user' });
    return outcome.code;
  } catch (error) {
    const output = createOutput(io, program.opts<GlobalOptions>());
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return EXIT.done;
      const message = error.message.replace(/^error: /, '');
      // The words to stderr are there already. An option behind the mistake has not been seen.
      if (output.isJson || argv.includes('--json')) {
        createOutput(io, { json: true }).json({
          event: 'error',
          code: 'usage',
          message,
          remedy: 'see livegraft help',
          details: {},
        });
      }
      return EXIT.usage;
    }
    output.error(error);
    return error instanceof LivegraftError && error.code === 'transition-interrupted'
      ? EXIT.incomplete
      : EXIT.failed;
  }
}

/** For `bin/livegraft.js`. */
export async function run(): Promise<void> {
  yieldHelperThreads();
  const io = processIo();
  process.exitCode = await main(process.argv.slice(2), io);
  if (io.outputFailure === undefined) return;
  io.err(`livegraft: error: the output can't be written: ${io.outputFailure.message}\n`);
  io.err('  what to do: make room for it; the command went on without it (livegraft status)\n');
  if (process.exitCode === EXIT.done) process.exitCode = EXIT.failed;
}

export function createProgram(io: Io, setCode: (code: number) => void): Command {
  const program = new Command('livegraft')
    .description('Replace functions of a running process, and never let a thread see half of a change.')
    .version(VERSION)
    .option('--json', 'newline-delimited JSON events, a result or error last')
    .option('--quiet', 'print errors only')
    .option('--no-color', 'no colours')
    .exitOverride()
    .configureOutput({ writeOut: (text) => io.out(text), writeErr: (text) => io.err(text) })
    .showHelpAfterError('(see livegraft help)')
    .addHelpText(
      'after',
      `
Exit codes: 0 done, 1 refused or failed with nothing changed, 2 usage, 3 transition not complete (safe; continue or revert)

Examples:
  $ livegraft build --source redis-7.0 --diff CVE.patch --target src/redis-server -o cve.lgp -- make -C src
  $ livegraft apply --pid 1234 cve.lgp
  $ livegraft status
  $ livegraft revert --pid 1234`,
    );
  const output = () => createOutput(io, program.opts<GlobalOptions>());
  addBuild(program, output);
  addCombine(program, output);
  addInspect(program, output, setCode);
  addApply(program, output, io, setCode);
  addRevert(program, output, io, setCode);
  addForce(program, output, io, setCode);
  addWatch(program, output, io, setCode);
  addStatus(program, output);
  addStack(program, output, setCode);
  addValidate(program, output, io, setCode);
  addSoak(program, output, io, setCode);
  program
    .command('completion')
    .description('print a completion script')
    .addArgument(new Argument('<shell>', 'of which shell').choices(['bash', 'zsh']))
    .addHelpText(
      'after',
      '\nExamples:\n  $ source <(livegraft completion bash)\n  $ livegraft completion zsh > ~/.zsh/_livegraft',
    )
    .action(async (shell: 'bash' | 'zsh') => {
      const { completionScript } = await import('./completion.js');
      io.out(completionScript(shell, program));
    });
  program
    .command('demo')
    .description('build a small server with a bug, and fix it while it runs (from a checkout)')
    .action(async () => {
      const { runDemo } = await import('./demo.js');
      setCode(await runDemo());
    });
  return program;
}

function addBuild(program: Command, output: () => Output): void {
  program
    .command('build')
    .description(
      'make a patch from a source tree and a diff, from two compiled objects, or for a kernel from one',
    )
    .option('--source <dir>', 'source tree that the target was built from')
    .option('--diff <file>', 'the change, as a unified diff')
    .option('--orig <object>', 'object compiled without the change')
    .option('--patched <object>', 'object compiled with the change')
    .option(
      '--replacement <object>',
      "an object whose functions take the place of a kernel's of the same names",
    )
    .option(
      '--module <file...>',
      'of a kernel: modules (.ko) whose functions are replaced, or referred to, too',
    )
    .option('--kernel', 'the source is that of the kernel that --target is')
    .option('--headers <dir>', 'what modules of the kernel are built against (/lib/modules/RELEASE/build)')
    .addOption(
      new Option('--format <format>', 'klp: a module (.ko) that the kernel loads and applies by itself')
        .choices(['lgp', 'klp'])
        .default('lgp'),
    )
    .requiredOption('--target <file>', 'the executable, library, or vmlinuz that runs')
    .option('--accept-layout-change <name...>', 'structures of which no object outlives a changed function')
    .option('--debug-dir <dir...>', 'where to look for the debug file of a stripped target')
    .requiredOption('-o, --output <file>', 'where to write the patch')
    .option('--name <name>', 'name of the patch (default: from the diff)')
    .option('--replace', 'a cumulative patch: all older patches go in the same transition')
    .option(
      '--barrier <symbol>',
      'a function that no thread calls while it is in one that the patch replaces',
    )
    .argument(
      '[command...]',
      'behind --: the command that builds the tree; with --kernel, more objects to compile',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ livegraft build --source . --diff fix.patch --target ./server -o fix.lgp -- make
  $ livegraft build --orig a.o --patched b.o --target ./server -o fix.lgp
  $ livegraft build --kernel --source linux-6.1 --diff fix.patch --target /boot/vmlinuz -o fix.lgp
  $ livegraft build --replacement new.o --target /boot/vmlinuz -o fix.lgp`,
    )
    .action(async (command: string[], options: BuildCommandOptions) => {
      const { build } = await import('./commands/build.js');
      await build(command, options, output());
    });
}

function addCombine(program: Command, output: () => Output): void {
  program
    .command('combine')
    .description('make one patch of several, each for an executable or library of its own')
    .argument('<file...>', '.lgp files')
    .requiredOption('-o, --output <file>', 'where to write the patch')
    .option('--name <name>', 'name of the patch (default: from the output)')
    .addHelpText('after', '\nExample:\n  $ livegraft combine server.lgp libproto.lgp -o fix.lgp')
    .action(async (files: string[], options: CombineOptions) => {
      const { combine } = await import('./commands/combine.js');
      combine(files, options, output());
    });
}

function addInspect(program: Command, output: () => Output, setCode: (code: number) => void): void {
  program
    .command('inspect')
    .description('show what a patch file holds, and what a running kernel would make of it')
    .argument('<file>', 'a .lgp file')
    .option('--gdb <socket>', 'the gdb socket of a machine, unix:PATH or HOST:PORT')
    .option('--vmlinux <file>', 'with --gdb: the vmlinuz or vmlinux of the kernel that runs')
    .option('--guest-memory <file>', 'with --gdb: the file that QEMU shares as its memory')
    .addHelpText(
      'after',
      `
Examples:
  $ livegraft inspect fix.lgp
  $ livegraft inspect --gdb unix:/run/guest-gdb --vmlinux vmlinuz fix.lgp`,
    )
    .action(async (file: string, options: Omit<SubjectOptions, 'pid'>) => {
      const isGiven = Object.keys(options).length > 0;
      const subject = isGiven ? subjectOf(options, program) : undefined;
      const { inspect } = await import('./commands/inspect.js');
      const kernel = subject?.kind === 'kernel' ? subject : undefined;
      setCode((await inspect(file, kernel, output())) ? EXIT.done : EXIT.failed);
    });
}

interface SubjectOptions {
  readonly pid?: number;
  readonly gdb?: string;
  readonly vmlinux?: string;
  readonly guestMemory?: string;
}

/** What a command works on: a process, or a running kernel. */
type Subject =
  | { readonly kind: 'process'; readonly pid: number }
  | {
      readonly kind: 'kernel';
      readonly gdb: string;
      readonly vmlinux: string;
      readonly guestMemory: string | undefined;
    };

function addSubjectOptions(command: Command): Command {
  return command
    .option('--pid <pid>', 'the process', parsePid)
    .option(
      '--gdb <socket>',
      'a running kernel instead: the gdb socket of its machine, unix:PATH or HOST:PORT',
    )
    .option('--vmlinux <file>', 'with --gdb: the vmlinuz or vmlinux of the kernel that runs')
    .option('--guest-memory <file>', 'with --gdb: the file that QEMU shares as its memory, much faster');
}

function subjectOf({ pid, gdb, vmlinux, guestMemory }: SubjectOptions, program: Command): Subject {
  if (pid !== undefined && [gdb, vmlinux, guestMemory].every((given) => given === undefined))
    return { kind: 'process', pid };
  if (pid === undefined && gdb !== undefined && vmlinux !== undefined)
    return { kind: 'kernel', gdb, vmlinux, guestMemory };
  const isBoth = pid !== undefined && gdb !== undefined;
  return program.error(
    isBoth
      ? 'error: give either --pid or --gdb: one process, or one kernel'
      : 'error: give --pid, or --gdb together with --vmlinux',
    { exitCode: EXIT.usage },
  );
}

interface TransitionOptions extends SubjectOptions {
  readonly model: ConsistencyModel;
  readonly timeout: number;
  readonly allowSuspendedContexts?: boolean;
}

function addTransitionOptions(command: Command): Command {
  return addSubjectOptions(command)
    .addOption(
      new Option('--model <model>', 'consistency model')
        .choices(['hybrid', 'immediate', 'stop', 'lazy'])
        .default('hybrid'),
    )
    .option('--timeout <seconds>', 'how long to try', parseSeconds, 30)
    .option('--allow-suspended-contexts', 'go on although a suspended coroutine may hold old code');
}

function addApply(program: Command, output: () => Output, io: Io, setCode: (code: number) => void): void {
  addTransitionOptions(program.command('apply'))
    .description('apply a patch to a running process or kernel')
    .argument('<file>', 'a .lgp file')
    .option(
      '--barrier <symbol>',
      'a function that no task calls while it is in one that the patch replaces (docs/operations.md); of a kernel, by default its edge',
    )
    .option('--replace', 'a cumulative patch: all older patches go in the same transition')
    .option(
      '--late',
      'apply although none of the files (of a kernel: modules) that the patch is for is loaded yet',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ livegraft apply --pid 1234 fix.lgp
  $ livegraft apply --pid 1234 --timeout 120 fix.lgp
  $ livegraft apply --gdb unix:/run/guest-gdb --vmlinux vmlinuz fix.lgp`,
    )
    .action(
      async (
        file: string,
        options: TransitionOptions & {
          readonly barrier?: string;
          readonly replace?: boolean;
          readonly late?: boolean;
        },
      ) => {
        const subject = subjectOf(options, program);
        const { applyKernelPatch, applyPatch } = await import('./commands/transition.js');
        setCode(
          subject.kind === 'process'
            ? await applyPatch(
                file,
                {
                  ...subject,
                  ...transitionOptions(options),
                  barrier: options.barrier,
                  replace: options.replace === true,
                  late: options.late === true,
                },
                output(),
                io,
              )
            : await applyKernelPatch(
                file,
                {
                  ...subject,
                  ...transitionOptions(options),
                  barrier: options.barrier,
                  replace: options.replace === true,
                  late: options.late === true,
                },
                output(),
                io,
              ),
        );
      },
    );
}

function addRevert(program: Command, output: () => Output, io: Io, setCode: (code: number) => void): void {
  addTransitionOptions(program.command('revert'))
    .description('remove a patch from a running process or kernel, or turn a half-done apply around')
    .argument('[patch]', 'name or id (default: the newest)')
    .addHelpText('after', '\nExample:\n  $ livegraft revert --pid 1234')
    .action(async (patch: string | undefined, options: TransitionOptions) => {
      const subject = subjectOf(options, program);
      const { revertKernelPatch, revertPatch } = await import('./commands/transition.js');
      setCode(
        subject.kind === 'process'
          ? await revertPatch(patch, { ...subject, ...transitionOptions(options) }, output(), io)
          : await revertKernelPatch(patch, { ...subject, ...transitionOptions(options) }, output(), io),
      );
    });
}

function addForce(program: Command, output: () => Output, io: Io, setCode: (code: number) => void): void {
  addSubjectOptions(program.command('force'))
    .description('complete a half-done transition without looking at the tasks that hold it up')
    .option(
      '--accept-inconsistency',
      'these tasks may run a mix of old and new code, and crash what they run in',
    )
    .option('--timeout <seconds>', 'how long to try', parseSeconds, 30)
    .addHelpText(
      'after',
      `
The patch counts as forced for good (livegraft status); its memory is never unmapped. docs/operations.md says when this is safe.

Example:
  $ livegraft force --pid 1234 --accept-inconsistency`,
    )
    .action(async (options: SubjectOptions & { acceptInconsistency?: boolean; timeout: number }) => {
      const subject = subjectOf(options, program);
      const { forceKernelTransition, forceTransition } = await import('./commands/transition.js');
      const { acceptInconsistency, timeout } = options;
      const how = { timeoutMs: timeout * 1000, acceptInconsistency: acceptInconsistency === true };
      setCode(
        subject.kind === 'process'
          ? await forceTransition({ ...subject, ...how }, output(), io)
          : await forceKernelTransition({ ...subject, ...how }, output(), io),
      );
    });
}

function transitionOptions({ model, timeout, allowSuspendedContexts }: TransitionOptions) {
  return { model, timeoutMs: timeout * 1000, allowSuspendedContexts: allowSuspendedContexts === true };
}

function addWatch(program: Command, output: () => Output, io: Io, setCode: (code: number) => void): void {
  addSubjectOptions(program.command('watch'))
    .description('patch libraries as a process loads them, and modules as a kernel does, before they start')
    .addHelpText(
      'after',
      `
For patches that were applied before their library or module was loaded (docs/operations.md). Runs until Ctrl-C or the end of the
process or guest. A guest's stub serves one debugger: other commands on a kernel have to wait until its watch has ended.

Examples:
  $ livegraft watch --pid 1234
  $ livegraft watch --gdb unix:/run/guest-gdb --vmlinux vmlinuz`,
    )
    .action(async (options: SubjectOptions) => {
      const subject = subjectOf(options, program);
      const { watchKernelModules, watchProcess } = await import('./commands/transition.js');
      setCode(
        subject.kind === 'process'
          ? await watchProcess(subject.pid, output(), io)
          : await watchKernelModules(subject, output(), io),
      );
    });
}

function addStatus(program: Command, output: () => Output): void {
  addSubjectOptions(program.command('status'))
    .description('show the patches of a process, of a kernel, or of all processes')
    .option(
      '--klp-state <file>',
      "what the kernel's own livepatch does, from a snapshot of its files (docs/kernel.md); - for standard input",
    )
    .option(
      '--explain',
      'of a transition that is not complete: what holds each thread, and what would release it',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ livegraft status
  $ livegraft status --pid 1234 --explain
  $ livegraft status --pid 1234 --json`,
    )
    .action(async (options: SubjectOptions & { readonly klpState?: string; readonly explain?: boolean }) => {
      if (options.klpState !== undefined) {
        const { showLivepatchStatus } = await import('./commands/status.js');
        await showLivepatchStatus(options.klpState, output());
        return;
      }
      const isGiven = options.gdb !== undefined || options.vmlinux !== undefined;
      const subject = isGiven ? subjectOf(options, program) : undefined;
      const { showKernelStatus, showStatus } = await import('./commands/status.js');
      if (subject?.kind === 'kernel') await showKernelStatus(subject, options.explain === true, output());
      else await showStatus(options.pid, options.explain === true, output());
    });
}

function addStack(program: Command, output: () => Output, setCode: (code: number) => void): void {
  addSubjectOptions(program.command('stack'))
    .description("walk every thread's stack, with verdict and reason")
    .addHelpText(
      'after',
      `
Examples:
  $ livegraft stack --pid 1234
  $ livegraft stack --gdb unix:/run/guest-gdb --vmlinux /boot/vmlinuz-6.1.0-50-cloud-amd64`,
    )
    .action(async (options: SubjectOptions) => {
      const subject = subjectOf(options, program);
      if (subject.kind === 'process') {
        const { showStacks } = await import('./commands/stack.js');
        await showStacks(subject.pid, output());
      } else {
        const { showKernelStacks } = await import('./commands/kernel-stack.js');
        await showKernelStacks(subject, output());
      }
      setCode(EXIT.done);
    });
}

function addValidate(program: Command, output: () => Output, io: Io, setCode: (code: number) => void): void {
  program
    .command('validate')
    .description('hold unwind tables and frame pointers against the instructions')
    .argument('<file...>', 'objects, libraries, programs, kernel modules, kernels')
    .option('--dwarf', '.eh_frame and .debug_frame (default: every table that a file has)')
    .option('--orc', '.orc_unwind')
    .option('--frame-pointer', 'the rules of frame pointers')
    .option(
      '--agree <a,b>',
      'two of dwarf, debug-frame, orc, frame-pointer claim the same (repeatable)',
      parseAgree,
      [],
    )
    .option('--suppress <file>', 'what not to report: a code and a function a line')
    .option('--sarif <file>', 'also write a SARIF 2.1.0 log; - for the standard output, in place of the text')
    .option(
      '--kernel-release <release>',
      'for ORC tables that do not say which format they have',
      parseKernelRelease,
    )
    .option('--threads <count>', 'how many threads (default: all processors)', parseCount)
    .option('--notes', 'show notes too')
    .option('--no-keep', "don't keep proofs in the cache folder")
    .addHelpText(
      'after',
      `
Exit codes: 0 clean, 1 findings, 2 a file could not be read. Codes of findings: docs/diagnostics.md

Examples:
  $ livegraft validate ./server /usr/lib/x86_64-linux-gnu/libc.so.6
  $ livegraft validate --orc --sarif orc.sarif drivers/*.ko
  $ livegraft validate --frame-pointer --agree dwarf,frame-pointer src/*.o`,
    )
    .action(async (files: string[], options: ValidateCommandOptions) => {
      const { validate } = await import('./commands/validate.js');
      try {
        const code = await validate(files, options, output());
        setCode(io.outputFailure === undefined ? code : VALIDATE_EXIT.unreadable);
      } catch (error) {
        // 1 would say that there are findings.
        output().error(error);
        setCode(VALIDATE_EXIT.unreadable);
      }
    });
}

function addSoak(program: Command, output: () => Output, io: Io, setCode: (code: number) => void): void {
  addSubjectOptions(program.command('soak'))
    .description(
      'walk stacks over and over while a process or a kernel runs, and count what is unreliable by cause and place',
    )
    .option('--switches <number>', 'how many walks', parseSwitches, 10_000)
    .option('--timeout <seconds>', 'how long at most', parseSeconds, 600)
    .option('--seed <number>', 'of a process: chooses the random instants (default: 1)', parseSeed)
    .addHelpText(
      'after',
      `
A process: each thread at entry and exit of its system calls, and running ones at random instants. It runs on, slower.
A kernel: every task at its context switches. Ctrl-C ends it and shows what was counted.
Exit codes: 0 all stacks reliable, 1 failed (says nothing about stacks), 2 usage, 4 some were not reliable

Examples:
  $ livegraft soak --pid 1234 --switches 20000
  $ livegraft soak --gdb unix:/run/guest-gdb --vmlinux vmlinuz`,
    )
    .action(async ({ switches, timeout, seed, ...options }: SoakCommandOptions) => {
      const subject = subjectOf(options, program);
      if (subject.kind === 'kernel' && seed !== undefined)
        program.error('error: --seed is for processes', { exitCode: EXIT.usage });
      const { soakKernelStacks, soakProcessStacks } = await import('./commands/soak.js');
      const limits = { switches, timeoutMs: timeout * 1000 };
      setCode(
        subject.kind === 'process'
          ? await soakProcessStacks(subject.pid, { ...limits, seed: seed ?? 1 }, output(), io)
          : await soakKernelStacks(subject, limits, output(), io),
      );
    });
}

interface SoakCommandOptions extends SubjectOptions {
  readonly switches: number;
  readonly timeout: number;
  readonly seed?: number;
}
