#!/usr/bin/env -S node --single-threaded --no-flush-bytecode --min-semi-space-size=16
// Without helper threads of V8: they would compete with the target for its processors, for milliseconds at a time. And
// with all compiled code kept: what has not run for long is not to be compiled again while a thread is held. And with
// room (MiB) for young objects: none are to be collected while one is held.
const { loadBundle } = require('./bundle.js');

const bundle = loadBundle();
if (bundle === undefined) {
  process.stderr.write('livegraft: not built yet\n  what to do: npm ci && npm run build\n');
  process.exit(1);
}
bundle.run();
