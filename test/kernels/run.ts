import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { makeWorkFolder, removeFolder } from '../../examples/support.js';
import { decompressors } from '../../src/cli/decompressors.js';
import { decompress, extractVmlinux } from '../../src/kernel-image/decompress.js';
import { parseKernelImage } from '../../src/kernel-image/kernel-image.js';
import { buildFramePointerKernel } from '../support/frame-pointer-kernel.js';
import { bootGuest } from '../support/guest.js';
import { fetchSuiteHeaders, fetchSuiteKernel, KERNEL_SUITES } from '../support/suite-kernels.js';
import { compatProgram } from './compat-programs.js';
import { KernelTrial, type Outcome } from './trial.js';

/**
 * `npm run kernels [-- [--only STEP] [--cpu MODEL] [SUITE|frame-pointer…]]`: each suite's cloud kernel boots in an emulator, and all that livegraft does with a kernel is
 * tried on it, or the steps whose names hold a text. Prints a table for docs/kernel.md; ends with 1 when anything failed.
 */

/** No suite of Debian, but a kernel that is built: only when it is asked for. */
const FRAME_POINTER = 'frame-pointer';
/** A module without dependencies that every one of these packages has, packed or not. */
const MODULES = ['kernel/fs/configfs/configfs.ko', 'kernel/fs/binfmt_misc.ko'];

async function tryKernel(suite: string): Promise<{ release: string; outcomes: readonly Outcome[] }> {
  const isPackaged = suite !== FRAME_POINTER;
  const kernel = isPackaged ? fetchSuiteKernel(suite) : buildFramePointerKernel();
  const headers = isPackaged ? fetchSuiteHeaders(suite, kernel.release) : undefined;
  const folder = makeWorkFolder();
  let guest: Awaited<ReturnType<typeof bootGuest>> | undefined;
  try {
    const bytes = extractVmlinux(readFileSync(kernel.vmlinuz), kernel.vmlinuz, decompressors);
    const vmlinux = join(folder, 'vmlinux');
    writeFileSync(vmlinux, bytes);
    const image = parseKernelImage(bytes, kernel.vmlinuz);
    const files = modulesOf(kernel.modules);
    for (const { path, data } of files) writeFileSync(join(folder, basename(path)), data);
    guest = await bootGuest({
      kernel,
      vcpus: 2,
      sharedMemory: true,
      ...(values.cpu === undefined ? {} : { cpu: values.cpu }),
      files: () => [...files, compatProgram()],
    });
    const trial = new KernelTrial({ guest, image, vmlinux, headers, folder, only: values.only });
    return { release: kernel.release, outcomes: await trial.run() };
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    return { release: kernel.release, outcomes: [{ what: 'boot', failed: true, text }] };
  } finally {
    guest?.stop();
    removeFolder(folder);
  }
}

function modulesOf(modules: string): readonly { readonly path: string; readonly data: Uint8Array }[] {
  return MODULES.flatMap((path) => {
    for (const end of ['', '.xz', '.zst', '.gz']) {
      try {
        const data = decompress(readFileSync(join(modules, path + end)), path, decompressors);
        return [{ path: `lib/${basename(path)}`, data }];
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      }
    }
    return [];
  });
}

const { values, positionals: suites } = parseArgs({
  allowPositionals: true,
  options: { only: { type: 'string' }, cpu: { type: 'string' } },
});
let failed = 0;
for (const suite of suites.length > 0 ? suites : KERNEL_SUITES) {
  const { release, outcomes } = await tryKernel(suite);
  process.stdout.write(`\n| ${suite}: ${release} | |\n|---|---|\n`);
  for (const { what, failed: isFailed, text } of outcomes) {
    process.stdout.write(`| ${what} | ${isFailed ? 'FAILED: ' : ''}${text.replaceAll('\n', ' ')} |\n`);
    if (isFailed) failed++;
  }
}
process.exitCode = failed === 0 ? 0 : 1;
