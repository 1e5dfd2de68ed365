#!/usr/bin/env -S -u NODE_EXTRA_CA_CERTS LG_CA=${NODE_EXTRA_CA_CERTS} node --single-threaded --min-semi-space-size=16          --expose-gc --no-flush-bytecode --interrupt-budget=500000
// Without helper threads of V8: they would compete with the target for its processors, for milliseconds at a time. With
// room (MiB) for young objects, which are collected when we say so: none are to be while a thread is held. All compiled
// code is kept: what has not run for long is not to be compiled again then. And without certificates: Node.js 20 reads
// those that this variable names at each start, for 100 ms, and livegraft asks nobody anything over TLS. The programs
// that it starts get the variable back. Code is optimized when it has run four times as long as usual: without helper
// threads everything waits for that, an apply for a fifth of its time, a held thread for up to a millisecond. Kernels
// before 5.1 cut the line off behind 127 bytes: there begin the options that livegraft can do without.
const { loadBundle } = require('./bundle.js');

const { LG_CA } = process.env;
if (LG_CA) process.env.NODE_EXTRA_CA_CERTS = LG_CA;
delete process.env.LG_CA;

const bundle = loadBundle();
if (bundle === undefined) {
  process.stderr.write('livegraft: not built yet\n  what to do: npm ci && npm run build\n');
  process.exit(1);
}
bundle.run();
