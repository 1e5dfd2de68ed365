import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { x86_64 } from '../src/arch/x86-64/index.js';
import { LivegraftError } from '../src/base/errors.js';
import { buildFromObjects } from '../src/build/from-objects.js';
import { SourceWorkspace } from '../src/build/source-workspace.js';
import { parseElf } from '../src/elf/reader.js';
import { parseKernelImage } from '../src/kernel-image/kernel-image.js';
import { readModuleImage } from '../src/kernel-image/module-image.js';
import { encodeProof } from '../src/validate/proof.js';
import { Scratch } from '../src/validate/scratch.js';
import { validateElf } from '../src/validate/validate-file.js';
import { fetchKernel } from '../test/support/guest.js';
import {
  C_SOURCE,
  compile,
  type FuzzTarget,
  folder,
  MAIN,
  once,
  pack,
  readBytes,
  run,
  sectionsOf,
  unpack,
} from './support.js';

/** What kernels and builds are read from: modules, kernels, objects of two compilations, a diff. */

/** Modules of some hundred kilobytes and less, small ones first. */
const modules = once(() => {
  const root = fetchKernel().modules;
  const files = readdirSync(root, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ko'))
    .map((file) => join(root, file))
    .sort((a, b) => statSync(a).size - statSync(b).size || (a < b ? -1 : 1));
  return [0, 0.1, 0.25, 0.4, 0.5].map((part) => readBytes(files[Math.floor(part * files.length)] as string));
});

const scratch = new Scratch();

/** All that a validation says of a module, with the proof that is kept. */
function verdictOf(bytes: Uint8Array, tryBrief: boolean) {
  const elf = parseElf(bytes, 'case');
  // Arrays that an earlier case has filled hide what goes beyond their end.
  const own = tryBrief ? new Scratch() : scratch;
  const result = validateElf(elf, { architecture: x86_64, kernelRelease: '6.1.0', scratch: own, tryBrief });
  return {
    sources: result.sources.map(({ source, counts }) => ({ source, counts })),
    findings: result.findings,
    proof: Buffer.from(encodeProof(result, 'orc') ?? []).toString('latin1'),
  };
}

const KERNEL = `
  .text
  .globl start, fixed
  .type start, @function
start: nop
fixed: ret
  .size start, .-start
  .section .rodata, "a"
  .globl linux_banner
linux_banner: .asciz "Linux version 6.1.0-test (gcc) #1\\n"
  .section __ksymtab, "a"
  .long start - ., name - ., space - .
  .section __ksymtab_strings, "aMS", @progbits, 1
name: .asciz "start"
space: .asciz ""
  .section __ex_table, "a"
  .long start - ., fixed - ., 1
  .section .BTF, "a"
  .incbin "types.bin"
`;

const kernelSeed = once(() => {
  writeFileSync(
    join(folder, 'types.bin'),
    sectionsOf(compile('types.o', C_SOURCE(3), '-gbtf', '-c'), '.BTF')[0] as Uint8Array,
  );
  writeFileSync(join(folder, 'kernel.s'), KERNEL);
  run('as', ['-o', 'kernel.o', 'kernel.s']);
  run('ld', ['-Ttext=0xffffffff81000000', '-e', 'start', '-o', 'kernel', 'kernel.o']);
  return [readBytes(join(folder, 'kernel'))];
});

const pairSeed = once(() => {
  const flags = ['-c', '-g', '-ffunction-sections', '-fdata-sections'];
  const objects = [3, 5].map((k) => readBytes(compile(`pair${k}.o`, C_SOURCE(k), ...flags)));
  const target = compile('pair-target', MAIN, compile('pair-plain.o', C_SOURCE(3), '-c'));
  return [pack([...objects, readBytes(target)])];
});

const DIFF = `--- a/a.c
+++ b/a.c
@@ -1,3 +1,3 @@
 int f(void) {
-  return 1;
+  return 2;
 }
--- /dev/null
+++ b/new.c
@@ -0,0 +1 @@
+int g;
`;

export const objectTargets: readonly FuzzTarget[] = [
  {
    name: 'modules',
    cases: 120,
    seeds: modules,
    read(bytes) {
      // Frames alone come to the same as all registers, whatever the file says.
      const [brief, full] = [verdictOf(bytes, true), verdictOf(bytes, false)];
      if (!isDeepStrictEqual(brief, full)) throw new Error('frames alone come to something else');
    },
  },
  {
    name: 'module-image',
    cases: 300,
    seeds: modules,
    refusal: LivegraftError,
    read: (bytes) => void readModuleImage(parseElf(bytes, 'case')).findAll('init_module'),
  },
  {
    name: 'kernel-image',
    cases: 1000,
    seeds: kernelSeed,
    refusal: LivegraftError,
    read(bytes) {
      const { symbols, exceptions } = parseKernelImage(bytes, 'case');
      void [symbols.findUnique('start'), exceptions.findFixup(0)];
    },
  },
  {
    name: 'object-pairs',
    cases: 100,
    seeds: pairSeed,
    refusal: LivegraftError,
    read(bytes) {
      const paths = ['original.o', 'patched.o', 'target'].map((name) => join(folder, `case-${name}`));
      const [origPath = '', patchedPath = '', targetPath = ''] = paths;
      unpack(bytes, 3).forEach((part, i) => {
        writeFileSync(paths[i] as string, part);
      });
      const options = { debugDirs: [], acceptedTypes: [], name: 'x', description: '', onEvent: () => {} };
      buildFromObjects({ ...options, origPath, patchedPath, targetPath });
    },
  },
  {
    name: 'diff',
    cases: 1000,
    seeds: () => [new Uint8Array(Buffer.from(DIFF))],
    refusal: LivegraftError,
    read(bytes) {
      const path = join(folder, 'case.diff');
      writeFileSync(path, bytes);
      // Of the source tree no more than which files there are is asked.
      const tree = new SourceWorkspace(folder, path, folder, () => {});
      if (tree.changedFiles.some((file) => file.split('/').includes('..')))
        throw new Error('a path leads outside');
    },
  },
];
