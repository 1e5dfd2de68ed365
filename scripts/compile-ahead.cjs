// Compiles every function of the bundle and keeps the code beside it. Called by build.mjs.
const { writeFileSync } = require('node:fs');
const { setFlagsFromString } = require('node:v8');
const { CODE_CACHE, compileBundle } = require('../bin/bundle.js');

setFlagsFromString('--no-lazy');
const script = compileBundle(undefined);
// Flags are part of the code's identity: as they are when it is used.
setFlagsFromString('--lazy');
writeFileSync(CODE_CACHE, script.createCachedData());
