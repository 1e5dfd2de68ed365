import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { x86_64 } from '../../src/arch/x86-64/index.js';
import { parseElf } from '../../src/elf/reader.js';
import { Scratch } from '../../src/validate/scratch.js';
import { validateElf } from '../../src/validate/validate-file.js';
import { COMPILED_FILES, describeCompiled, readSnapshot, UNEXPLAINED } from '../support/compiler-findings.js';
import { readVdso } from '../support/vdso.js';

/** Files of compilers against what docs/validation-results.md says of them: the small ones of `npm run oracle:compilers`. */

const QUICK = /^(libc|ld|libssl|libz)\./;
const snapshot = readSnapshot();
const scratch = new Scratch();

describe('validate of what compilers made', () => {
  it.each(COMPILED_FILES.filter(({ name, path }) => QUICK.test(name) && existsSync(path)))(
    'says of $name what is written down, and nothing else',
    ({ name, path }) => {
      const [found, known] = [describeCompiled(name, path, scratch), snapshot[name]];
      if (known === undefined) throw new Error(`${name} is not in the snapshot`);
      if (found.buildId === known.buildId) {
        expect(found).toEqual(known);
        return;
      }
      // Of other builds no address is known: those that had no finding are to have none.
      process.stdout.write(`${name} is another build (${found.buildId}) than the one written down\n`);
      if (Object.keys(known.findings).length === 0) expect(found.findings).toEqual({});
    },
  );

  it('has a cause for every finding that is written down, and the manual tells of it', () => {
    const manual = readFileSync(new URL('../../docs/validation-results.md', import.meta.url), 'utf8');
    const causes = new Set(Object.values(snapshot).flatMap(({ findings }) => Object.keys(findings)));
    expect(causes.size).toBeGreaterThan(10);
    expect(causes).not.toContain(UNEXPLAINED);
    for (const cause of causes) expect(manual).toContain(`- **${cause}`);
    for (const [name, { counts }] of Object.entries(snapshot))
      expect(manual).toContain(`| ${name} | ${counts.proven.toLocaleString('en')} |`);
  });

  it('finds nothing in the vDSO of the running kernel', () => {
    const { findings, sources } = validateElf(parseElf(readVdso(), '[vdso]'), { architecture: x86_64 });
    expect(findings).toEqual([]);
    expect(sources[0]?.counts.proven).toBeGreaterThan(100);
  });
});
