const { readFileSync } = require('node:fs');
const { createRequire } = require('node:module');
const { dirname, join } = require('node:path');
const vm = require('node:vm');

const BUNDLE = join(__dirname, '..', 'dist', 'livegraft.cjs');
/** Compiled code of the bundle (`scripts/build.mjs`). Node.js takes it only in the very version, with the flags, that made it. */
const CODE_CACHE = join(__dirname, '..', 'dist', 'livegraft.code');

function readIfThere(path) {
  try {
    return readFileSync(path);
  } catch (error) {
    if (error.code === 'ENOENT') return undefined;
    throw error;
  }
}

/** The bundle as a script, undefined when it was not built. Code that does not fit this Node.js is compiled anew. */
function compileBundle(cachedData) {
  const source = readIfThere(BUNDLE);
  if (source === undefined) return undefined;
  return new vm.Script(`(function (exports, require, module, __filename) {${source}\n})`, {
    filename: BUNDLE,
    cachedData,
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
}

/** Runs the bundle and returns what it exports, undefined when it was not built. */
function loadBundle() {
  const script = compileBundle(readIfThere(CODE_CACHE));
  if (script === undefined) return undefined;
  const module = { exports: {} };
  script
    .runInThisContext()
    .call(module.exports, module.exports, createRequire(BUNDLE), module, BUNDLE, dirname(BUNDLE));
  return module.exports;
}

module.exports = { CODE_CACHE, compileBundle, loadBundle };
