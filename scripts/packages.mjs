// Debian packages that each task needs, and the command to look for on other systems.
const COMPILER = [
  { name: 'gcc', command: 'gcc' },
  { name: 'libc6-dev' },
  { name: 'make', command: 'make' },
  { name: 'patch', command: 'patch' },
];
const ORACLES = [
  { name: 'gdb', command: 'gdb' },
  { name: 'binutils', command: 'readelf' },
  { name: 'gdb', command: 'gdb' },
  { name: 'bpftool', command: 'bpftool' },
  { name: 'xz-utils', command: 'xz' },
  { name: 'zstd', command: 'zstd' },
  { name: 'lz4', command: 'lz4' },
];

/** A guest: its kernel is fetched by the tests themselves. */
const GUEST = [{ name: 'qemu-system-x86', command: 'qemu-system-x86_64' }, { name: 'busybox-static' }];

/** What compiles one of its files: the compiler that made it. Source and headers are fetched by who needs them. */
const KERNEL_BUILD = [
  { name: 'gcc-12', command: 'gcc-12' },
  { name: 'xz-utils', command: 'xz' },
];

/** What builds a whole kernel: `npm run kernels -- frame-pointer`. */
const WHOLE_KERNEL = [
  ...KERNEL_BUILD,
  { name: 'flex', command: 'flex' },
  { name: 'bison', command: 'bison' },
  { name: 'bc', command: 'bc' },
  { name: 'libelf-dev' },
  { name: 'dwarves', command: 'pahole' },
];

export const PACKAGES = {
  test: [
    ...COMPILER,
    { name: 'g++', command: 'g++' },
    { name: 'strace', command: 'strace' },
    { name: 'musl-tools', command: 'musl-gcc' },
    ...ORACLES,
    ...GUEST,
  ],
  demo: COMPILER,
  'demo:redis': [
    ...COMPILER,
    { name: 'dpkg-dev', command: 'dpkg-source' },
    { name: 'pkg-config', command: 'pkg-config' },
  ],
  faults: COMPILER,
  'bench:apply': COMPILER,
  'bench:engine': COMPILER,
  'bench:stack': [...COMPILER, { name: 'elfutils', command: 'eu-stack' }, { name: 'libunwind-dev' }],
  // libelf1 is what objtool is linked with; libssl3 is one of the files.
  'bench:validate': [...ORACLES, { name: 'libelf1' }, { name: 'libssl3' }],
  'test:kernel': [...COMPILER, ...GUEST, ...KERNEL_BUILD],
  'demo:kernel': [...COMPILER, ...GUEST, ...KERNEL_BUILD],
  kernels: [...COMPILER, ...GUEST, ...WHOLE_KERNEL],
  'soak:kernel': GUEST,
  'bench:kernel': [...COMPILER, ...GUEST],
  fuzz: [...COMPILER, ...ORACLES],
  // Files of the tables.
  'oracle:compilers': [
    ...['libssl3', 'libstdc++6', 'zlib1g', 'redis-tools', 'gdb', 'python3.11-minimal'].map((name) => ({
      name,
    })),
  ],
  'oracle:decoder': [{ name: 'libssl3' }],
};
