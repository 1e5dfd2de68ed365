// Bundles the command line and the library into dist/, and compiles the command line ahead of its first run.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { dataModules } from './data-modules.mjs';

/** commander loads it for subcommands that are programs of their own, which livegraft has none of; it takes 9 ms of each start. */
const lazyChildProcess = {
  name: 'lazy-child-process',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^node:child_process$/ }, ({ importer }) =>
      /[/]commander[/]/.test(importer) ? { path: 'child_process', namespace: 'lazy' } : undefined,
    );
    onLoad({ filter: /^child_process$/, namespace: 'lazy' }, () => ({
      contents: "exports.spawn = (...args) => require('child_process').spawn(...args);",
    }));
  },
};

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
rmSync(join(root, 'dist'), { recursive: true, force: true });

const common = {
  absWorkingDir: root,
  outdir: 'dist',
  bundle: true,
  platform: 'node',
  target: 'node20',
  external: ['koffi', '@napi-rs/lzma'],
  legalComments: 'none',
  logLevel: 'warning',
  plugins: [dataModules, lazyChildProcess],
};
// CommonJS, since only a plain script can be kept with its compiled code.
await build({
  ...common,
  entryPoints: { livegraft: 'src/cli/main.ts', 'validate-worker': 'src/cli/validate-worker.ts' },
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
  define: { 'import.meta.url': 'livegraftUrl' },
  banner: { js: "const livegraftUrl = require('node:url').pathToFileURL(__filename).href;" },
});
await build({
  ...common,
  entryPoints: { 'guest-guard': 'src/targets/kernel/guard-main.ts' },
  format: 'cjs',
  outExtension: { '.js': '.cjs' },
});
await build({ ...common, entryPoints: { index: 'src/index.ts' }, format: 'esm' });

// With the flags of its first line, without which Node.js would not take the code.
const [shebang] = readFileSync(join(root, 'bin/livegraft.js'), 'utf8').split('\n', 1);
const flags = shebang.split(' ').filter((word) => word.startsWith('--'));
execFileSync(process.execPath, [...flags, join(root, 'scripts/compile-ahead.cjs')], { stdio: 'inherit' });

// Declarations for those who call livegraft as a library; the compiler itself is there in development only.
const compiler = join(root, 'node_modules/typescript7/bin/tsc');
if (existsSync(compiler))
  execFileSync(process.execPath, [compiler, '-p', join(root, 'tsconfig.types.json')], {
    stdio: ['ignore', 2, 2],
  });
