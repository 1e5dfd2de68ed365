// Bundles the command line into dist/: one entry, with the commands as chunks that load when they are called.
import { execFileSync } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
rmSync(join(root, 'dist'), { recursive: true, force: true });
await build({
  absWorkingDir: root,
  entryPoints: {
    main: 'src/cli/main.ts',
    index: 'src/index.ts',
    'validate-worker': 'src/cli/validate-worker.ts',
  },
  outdir: 'dist',
  bundle: true,
  splitting: true,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  external: ['koffi', '@napi-rs/lzma'],
  // commander is CommonJS and asks for node's own modules by require.
  banner: {
    js: "import { createRequire as livegraftRequire } from 'node:module'; const require = livegraftRequire(import.meta.url);",
  },
  legalComments: 'none',
  logLevel: 'warning',
});
// Declarations for those who call livegraft as a library; the compiler itself is there in development only.
const compiler = join(root, 'node_modules/typescript7/bin/tsc');
if (existsSync(compiler))
  execFileSync(process.execPath, [compiler, '-p', join(root, 'tsconfig.types.json')], {
    stdio: ['ignore', 2, 2],
  });
