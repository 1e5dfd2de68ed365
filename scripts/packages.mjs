// Debian packages that each task needs, and the command to look for on other systems.
const COMPILER = [
  { name: 'gcc', command: 'gcc' },
  { name: 'libc6-dev' },
  { name: 'make', command: 'make' },
  { name: 'patch', command: 'patch' },
];
const ORACLES = [{ name: 'binutils', command: 'readelf' }];

export const PACKAGES = {
  test: [...COMPILER, ...ORACLES],
  demo: COMPILER,
  'bench:apply': COMPILER,
  'oracle:decoder': [{ name: 'libssl3' }],
};
