import { defineConfig } from 'vitest/config';

/** `npm run test:kernel`: what takes minutes, or a source package. */
export default defineConfig({
  test: {
    reporters: ['default', './scripts/plain-reporter.mjs'],
    include: ['test/long/**/*.test.ts'],
    pool: 'forks',
    fileParallelism: false,
    testTimeout: 300_000,
    hookTimeout: 300_000,
  },
});
