import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { LivegraftError } from '../../base/errors.js';
import { buildFromObjects, sha256 } from '../../build/from-objects.js';
import type { Patch } from '../../patch/content.js';
import { parsePatch, writePatch } from '../../patch/file.js';
import { jsonLineSchema } from '../json-schema.js';
import { main } from '../main.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-inspect-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A patch of real code: a function with a string and a jump to another, for a program without a build-id. */
function makePatch(): Uint8Array {
  const compile = (name: string, text: string, ...flags: string[]) => {
    writeFileSync(join(folder, 'a.c'), text);
    const { status, stderr } = spawnSync('gcc', ['-O2', ...flags, '-o', name, 'a.c'], {
      cwd: folder,
      encoding: 'utf8',
    });
    if (status !== 0) throw new Error(stderr);
    return join(folder, name);
  };
  const text = (message: string) =>
    `#include <stdio.h>\nint count; __attribute__((noinline)) void say(void) { count++; puts("${message}"); }\nint main(void) { say(); return 0; }`;
  const sections = ['-c', '-ffunction-sections', '-fdata-sections'];
  const program = compile('program', text('old'));
  return buildFromObjects({
    origPath: compile('orig.o', text('old'), ...sections),
    patchedPath: compile('patched.o', text('new'), ...sections),
    targetPath: program,
    debugDirs: [],
    acceptedTypes: [],
    name: 'say-new',
    description: 'says something else',
    onEvent: () => {},
  }).bytes;
}

const bytes = makePatch();
const file = join(folder, 'fix.lgp');
writeFileSync(file, bytes);

async function inspect(...args: string[]) {
  let [out, err] = ['', ''];
  const code = await main(['inspect', ...args], {
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
    isTerminal: false,
    errorColumns: undefined,
    columns: 80,
    rows: 24,
    noColor: true,
    onInterrupt: () => () => {},
    onReverse: () => () => {},
  });
  return { code, out, err };
}

/** Writes bytes, inspects them, and expects one clear error. */
async function expectError(content: Uint8Array, code: string | RegExp): Promise<string> {
  const path = join(folder, 'damaged.lgp');
  writeFileSync(path, content);
  const json = await inspect('--json', path);
  const lines = json.out.trim().split('\n');
  expect([json.code, lines.length]).toEqual([1, 1]);
  const line = jsonLineSchema.parse(JSON.parse(lines[0] as string));
  if (line.event !== 'error') throw new Error(`not an error: ${lines[0]}`);
  expect(line.code).toMatch(code);
  expect(line.remedy).toMatch(/\w/);
  expect(line.message).toContain(path);
  return line.message;
}

describe('inspect', () => {
  it('shows what a patch replaces and uses', async () => {
    const { code, out, err } = await inspect(file);
    expect([code, err]).toEqual([0, '']);
    expect(out).toMatch(/^say-new \([0-9a-f]{16}\)\n {2}says something else\n/);
    expect(out).toMatch(/for program \((build-id|text) [0-9a-f]+\)/);
    expect(out).toMatch(/replaces say at 0x[0-9a-f]+, \d+ bytes/);
    expect(out).toMatch(/uses object count at 0x/);
  });

  it('says the same as JSON that fits its schema', async () => {
    const { out } = await inspect('--json', file);
    const line = jsonLineSchema.parse(JSON.parse(out));
    expect(line).toMatchObject({ event: 'inspected', manifest: { name: 'say-new', architecture: 'x86-64' } });
  });

  it('reads what it writes', () => {
    const patch = parsePatch(bytes, 'fix', sha256);
    const again = parsePatch(writePatch(patch, sha256), 'again', sha256);
    expect(again.manifest).toEqual(patch.manifest);
    const parts = ({ sections }: Patch) =>
      sections.map(({ name, kind, data, alignment }) => ({ name, kind, data, alignment }));
    expect(parts(again)).toEqual(parts(patch));
    const named = ({ symbols }: Patch) => symbols.filter((s) => s.name !== '');
    expect(named(again)).toEqual(named(patch));
  });
});

describe('damaged patch files', () => {
  it('cut at every length', async () => {
    for (let length = 0; length < bytes.length; length++) {
      try {
        parsePatch(bytes.subarray(0, length), 'cut', sha256);
        throw new Error(`${length} bytes of ${bytes.length} were taken for a patch`);
      } catch (error) {
        expect(error).toBeInstanceOf(LivegraftError);
        expect((error as LivegraftError).code).toMatch(/^patch-(malformed|corrupted)$/);
      }
      // The command line as a whole, now and then.
      if (length % 97 === 0) await expectError(bytes.subarray(0, length), /^patch-(malformed|corrupted)$/);
    }
  });

  it('every byte changed', () => {
    const codes = new Map<string, number>();
    for (let at = 0; at < bytes.length; at++) {
      const changed = bytes.slice();
      changed[at] = (changed[at] as number) ^ (1 << (at % 8));
      try {
        parsePatch(changed, 'changed', sha256);
        throw new Error(`a changed byte at ${at} was not seen`);
      } catch (error) {
        expect(error).toBeInstanceOf(LivegraftError);
        const { code } = error as LivegraftError;
        codes.set(code, (codes.get(code) ?? 0) + 1);
      }
    }
    expect([...codes.keys()].sort()).toEqual(['patch-corrupted', 'patch-malformed']);
  });

  it('longer than it should be', async () => {
    await expectError(Uint8Array.from([...bytes, 0]), 'patch-corrupted');
  });

  it.each([
    ['nothing', new Uint8Array(), 'patch-malformed'],
    [
      'a text',
      new TextEncoder().encode('not a patch, but long enough to hold an ELF header, and then some more'),
      'patch-malformed',
    ],
    ['a program', readFileSync('/bin/true'), 'patch-malformed'],
    ['an object file', readFileSync(join(folder, 'patched.o')), 'patch-malformed'],
  ])('%s', async (_, content, code) => {
    expect(await expectError(content, code)).toMatch(/not a usable patch file|no livegraft patch/);
  });

  it('a folder, a device, nothing there', async () => {
    for (const path of [folder, '/dev/zero', join(folder, 'gone.lgp')]) {
      const { code, err } = await inspect(path);
      expect(code).toBe(1);
      expect(err).toContain(path);
      expect(err).not.toMatch(/^\s+at /m);
    }
    expect((await inspect()).code).toBe(2);
  });
});

describe('files with a right checksum and wrong contents', () => {
  const patch = parsePatch(bytes, 'fix', sha256);
  const write = (change: Partial<Patch>) => writePatch({ ...patch, ...change }, sha256);
  const [object] = patch.manifest.objects;
  if (object === undefined) throw new Error('no object');
  const [fn] = object.functions;
  if (fn === undefined) throw new Error('no function');
  const withFunction = (change: Partial<typeof fn>) =>
    write({ manifest: { ...patch.manifest, objects: [{ ...object, functions: [{ ...fn, ...change }] }] } });
  const [first, ...others] = patch.sections;
  if (first === undefined) throw new Error('no section');

  it('a future version', async () => {
    const manifest = {
      ...patch.manifest,
      formatVersion: 2,
      somethingNew: true,
    } as unknown as Patch['manifest'];
    const message = await expectError(write({ manifest }), 'patch-future-version');
    expect(message).toMatch(/patch format 2; this livegraft knows formats up to 1/);
  });

  it.each([
    [
      'no version',
      write({ manifest: { ...patch.manifest, formatVersion: undefined } as unknown as Patch['manifest'] }),
      /invalid at formatVersion/,
    ],
    [
      'an unknown field',
      write({ manifest: { ...patch.manifest, extra: 1 } as unknown as Patch['manifest'] }),
      /manifest is invalid/,
    ],
    [
      'no functions',
      write({ manifest: { ...patch.manifest, objects: [{ ...object, functions: [] }] } }),
      /invalid at objects: it replaces no function/,
    ],
    [
      'a bad address',
      withFunction({ old: { ...fn.old, address: '1234' } }),
      /invalid at objects\.0\.functions\.0\.old\.address/,
    ],
    [
      'a new version that is not there',
      withFunction({ newSymbol: 'gone' }),
      /new version of say, gone, is defined 0 times/,
    ],
    ['a part that is not there', withFunction({ newParts: ['say.cold'] }), /say\.cold, is defined 0 times/],
    [
      'an odd alignment',
      write({ sections: [{ ...first, alignment: 24 }, ...others] }),
      /aligned to 24 bytes/,
    ],
    ['a huge alignment', write({ sections: [{ ...first, alignment: 65536 }, ...others] }), /aligned to/],
    [
      'a relocation outside of its section',
      write({
        sections: [
          { ...first, relocations: [{ offset: 2 ** 31, type: 2, symbolIndex: 1, addend: 0 }] },
          ...others,
        ],
      }),
      /a relocation of \.text\.say lies at 2147483648/,
    ],
    [
      'too much zeroed data',
      write({
        sections: [
          ...patch.sections,
          {
            name: '.bss.x',
            kind: 'zero',
            alignment: 8,
            data: new Uint8Array(),
            sizeBytes: 2 ** 40,
            relocations: [],
          },
        ],
      }),
      /take more than/,
    ],
    [
      'a symbol outside of its section',
      write({
        symbols: patch.symbols.map((s) => (s.kind === 'defined' && s.isFunction ? { ...s, value: 5000 } : s)),
      }),
      /lies outside of its section/,
    ],
  ])('%s', async (_, content, pattern) => {
    expect(await expectError(content, 'patch-malformed')).toMatch(pattern);
  });
});
