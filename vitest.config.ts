import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    reporters: ['default', './scripts/plain-reporter.mjs'],
    projects: [
      {
        test: {
          name: 'unit',
          include: ['src/**/*.test.ts', 'test/oracle/**/*.test.ts', 'fuzz/**/*.test.ts'],
          testTimeout: 60_000,
        },
      },
      {
        // Real processes on two cores: one file at a time, each in a process of its own (ptrace is bound to a thread).
        test: {
          name: 'live',
          include: ['test/live/**/*.test.ts'],
          pool: 'forks',
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
