import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { x86_64 } from '../arch/x86-64/index.js';
import { parseElf } from '../elf/reader.js';
import { type ClaimSource, FINDING_CODES } from './findings.js';
import { type ValidateOptions, validateElf } from './validate-file.js';

const CORPUS = fileURLToPath(new URL('../../test/corpus/validate', import.meta.url));
const sources = readdirSync(CORPUS).filter((file) => file.endsWith('.s'));

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'livegraft-corpus-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The first lines of a file say what validate must find (nothing, without `expect`) and how it is called. */
function header(file: string, what: 'expect' | 'options'): string[] {
  const line = new RegExp(`^# ${what}: (.*)$`, 'm').exec(readFileSync(join(CORPUS, file), 'utf8'));
  return line?.[1]?.split(' ') ?? [];
}

function optionsOf(file: string): ValidateOptions {
  const options = header(file, 'options');
  const agree = options.flatMap((o) =>
    o.startsWith('agree=') ? [o.slice(6).split(',') as [ClaimSource, ClaimSource]] : [],
  );
  const modes = options.filter((o) => !o.startsWith('agree=')) as ClaimSource[];
  return {
    architecture: x86_64,
    kernelRelease: '6.1.0',
    agree,
    ...(options.length > 0 && { sources: modes }),
  };
}

function findingsOf(file: string): string[] {
  const object = join(folder, `${basename(file, '.s')}.o`);
  const { status, stderr } = spawnSync('as', ['-o', object, join(CORPUS, file)], { encoding: 'utf8' });
  expect([status, stderr]).toEqual([0, '']);
  const { findings } = validateElf(parseElf(readFileSync(object), object), optionsOf(file));
  return [...new Set(findings.map((finding) => finding.code))].sort();
}

describe('the assembly corpus', () => {
  it.each(sources)('%s', (file) => {
    expect(findingsOf(file)).toEqual(header(file, 'expect').sort());
    expect(header(file, 'expect').length > 0).toBe(file.endsWith('.bad.s'));
  });

  it('has every code, and no other, in the documentation, with its level', () => {
    const manual = readFileSync(fileURLToPath(new URL('../../docs/diagnostics.md', import.meta.url)), 'utf8');
    const rows = [...manual.matchAll(/^\| `([a-z-]+)` \| (error|warning|note) \|/gm)];
    expect(Object.fromEntries(rows.map(([, code, level]) => [code, level]))).toEqual({ ...FINDING_CODES });
  });

  it('has a good and a bad example of each code', () => {
    for (const code of Object.keys(FINDING_CODES)) {
      expect(sources).toContain(`${code}.bad.s`);
      expect(sources).toContain(`${code}.good.s`);
      expect(header(`${code}.bad.s`, 'expect')).toContain(code);
    }
  });
});

/** As many arguments as this overflow the call stack. */
const MANY = 150_000;

it('reports more findings than fit on the call stack as arguments', () => {
  const source = join(folder, 'many.s');
  writeFileSync(
    source,
    `.type g,@function\ng: ret\n.size g,.-g\n.type f,@function\nf:\n.rept ${MANY}\ncall g\n.endr\nret\n.size f,.-f\n`,
  );
  const object = join(folder, 'many.o');
  expect(spawnSync('as', ['-o', object, source]).status).toBe(0);
  const { findings } = validateElf(parseElf(readFileSync(object), object), {
    architecture: x86_64,
    sources: ['frame-pointer'],
  });
  expect(findings.filter(({ code }) => code === 'call-without-frame-pointer')).toHaveLength(MANY);
});
