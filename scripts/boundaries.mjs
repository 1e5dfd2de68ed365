// Holds the folders to what each may import (ARCHITECTURE.md, "Rooms"), through dependency-cruiser.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cruise } from 'dependency-cruiser';
import extractTSConfig from 'dependency-cruiser/config-utl/extract-ts-config';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
process.chdir(root);

const MAY_IMPORT = {
  base: [],
  elf: ['base'],
  cfi: ['base'],
  dwarf: ['base', 'cfi'],
  orc: ['base', 'cfi'],
  btf: ['base'],
  arch: ['base', 'cfi'],
  'kernel-image': ['base', 'elf', 'btf'],
  validate: ['base', 'elf', 'cfi', 'dwarf', 'orc', 'arch'],
  unwind: ['base', 'elf', 'cfi', 'dwarf', 'orc', 'arch'],
  patch: ['base', 'elf', 'arch'],
  build: ['base', 'elf', 'dwarf', 'btf', 'arch', 'patch', 'kernel-image'],
  engine: ['base'],
  targets: [
    ...['base', 'elf', 'cfi', 'dwarf', 'orc', 'btf', 'kernel-image'],
    ...['arch', 'validate', 'unwind', 'patch', 'engine'],
  ],
  cli: [
    ...['base', 'elf', 'cfi', 'dwarf', 'orc', 'btf', 'kernel-image'],
    ...['arch', 'validate', 'unwind', 'patch', 'build', 'engine', 'targets'],
  ],
};
/** No input or output here: everything comes in as arguments. */
const PURE = [
  ...['base', 'elf', 'cfi', 'dwarf', 'orc', 'btf', 'kernel-image'],
  ...['arch', 'validate', 'unwind', 'patch', 'engine'],
];

const notTests = '\\.test\\.ts$';
const forbidden = Object.entries(MAY_IMPORT).map(([folder, allowed]) => ({
  name: `${folder}-imports`,
  severity: 'error',
  from: { path: `^src/${folder}/`, pathNot: notTests },
  to: { path: '^src/', pathNot: [folder, ...allowed].map((name) => `^src/${name}/`) },
}));
forbidden.push(
  {
    name: 'no-cycles',
    severity: 'error',
    from: { path: '^src/' },
    to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
  },
  {
    name: 'pure-rooms',
    severity: 'error',
    from: { path: `^src/(${PURE.join('|')})/`, pathNot: notTests },
    to: { dependencyTypes: ['core'] },
  },
  {
    name: 'native-calls-in-one-file',
    severity: 'error',
    from: { path: '^src/', pathNot: '^src/targets/process/native\\.ts$' },
    to: { path: 'koffi' },
  },
);

const { output } = await cruise(
  ['src'],
  {
    ruleSet: { forbidden },
    validate: true,
    tsPreCompilationDeps: true,
    doNotFollow: 'node_modules',
    tsConfig: { fileName: 'tsconfig.json' },
  },
  {},
  { tsConfig: extractTSConfig('tsconfig.json') },
);
const problems = output.summary.violations.map((v) => `${v.rule.name}: ${v.from} -> ${v.to}`);
if (output.summary.totalCruised === 0) problems.push('no module was read: the check itself is broken');

for (const folder of readdirSync('src', { withFileTypes: true })) {
  if (folder.isDirectory() && MAY_IMPORT[folder.name] === undefined)
    problems.push(`src/${folder.name} has no row in the table`);
}
for (const file of readdirSync('src', { recursive: true })) {
  const path = String(file);
  if (!path.endsWith('.ts') || path.startsWith('cli/')) continue;
  if (/process\.exit(Code)?\b/.test(readFileSync(join('src', path), 'utf8')))
    problems.push(`src/${path} sets an exit code`);
}
if (problems.length > 0) {
  process.stdout.write(`${problems.join('\n')}\n`);
  process.exit(1);
}
process.stdout.write(`${output.summary.totalCruised} modules, no violation\n`);
