import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ByteWriter } from '../base/byte-writer.js';
import { parseElf } from '../elf/reader.js';
import { LineTable } from './line-section.js';

/** Held against readelf's decoded table and addr2line, on what the compiler makes in every version and format. */

const SOURCE = `
#include "part.h"
#include <stdlib.h>
int cold(int x) __attribute__((cold, noinline));
int cold(int x) {
  return abs(x) + 1;
}
int looping(const char *text) {
  int sum = 0;
  for (; *text; text++) {
    sum = twice(sum) + *text;
    if (sum > 100000)
      sum = cold(sum);
  }
  return sum;
}
int main(int count, char **arguments) {
  return looping(arguments[count - 1]);
}
`;
const HEADER = 'static __attribute__((noinline)) int twice(int x) {\n  return x * 2;\n}\n';
const VARIANTS = [
  '-gdwarf-2',
  '-gdwarf-3',
  '-gdwarf-4',
  '-gdwarf-5',
  '-gdwarf-4 -gdwarf64',
  '-gdwarf-5 -gdwarf64',
];

const folder = mkdtempSync(join(tmpdir(), 'livegraft-lines-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
beforeAll(() => {
  writeFileSync(join(folder, 'main.c'), SOURCE);
  writeFileSync(join(folder, 'part.h'), HEADER);
});

function run(command: string, args: readonly string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: folder, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return stdout;
}

function compile(name: string, flags: string): string {
  run('gcc', ['-O2', '-Wno-all', '-no-pie', ...flags.split(' '), '-o', name, 'main.c']);
  return join(folder, name);
}

function linesOf(path: string): LineTable {
  const elf = parseElf(readFileSync(path), path);
  return new LineTable({
    bytes: elf.findSection('.debug_line')?.data ?? new Uint8Array(),
    lineStrings: elf.findSection('.debug_line_str')?.data,
    strings: elf.findSection('.debug_str')?.data,
    source: path,
  });
}

/** `main.c 5 0x401000`, `-` for the end of a sequence. */
function readelfRows(path: string): string[] {
  const rows: string[] = [];
  for (const line of run('readelf', ['-W', '--debug-dump=decodedline', path]).split('\n')) {
    const match = /^(\S+)\s+(\d+|-)\s+(0x[0-9a-f]+|0)(\s|$)/.exec(line);
    if (match !== null) rows.push(`${match[1]} ${match[2]} ${match[3]}${/\sx\s*$/.test(line) ? ' x' : ''}`);
  }
  return rows;
}

describe('line tables', () => {
  it.each(VARIANTS)('%s are read as readelf reads them', (flags) => {
    const path = compile('program', flags);
    const table = linesOf(path);
    expect(table.problems).toEqual([]);
    const own = [...table.rows()].map((row) =>
      row.endsSequence
        ? `${basename(row.file)} - 0x${row.address.toString(16)}`
        : `${basename(row.file)} ${row.line} 0x${row.address.toString(16)}${row.isStatement ? ' x' : ''}`,
    );
    const expected = readelfRows(path);
    expect(own.length).toBeGreaterThan(30);
    // readelf marks ends of sequences as statements or not by version; sequences come in the order of the file.
    const plain = (rows: string[]) => rows.map((row) => row.replace(/( - \S+) x$/, '$1')).sort();
    expect(plain(own)).toEqual(plain(expected));
  });

  it('say of each instruction what addr2line says', () => {
    // Of version 5, binutils 2.40 takes the wrong file for headers; readelf and gdb do not.
    const path = compile('program', '-gdwarf-4');
    const table = linesOf(path);
    const addresses = run('objdump', ['-d', '-j', '.text', path])
      .split('\n')
      .flatMap((line) => /^\s+([0-9a-f]+):\t/.exec(line)?.[1] ?? []);
    const known = run('addr2line', ['-e', path, ...addresses])
      .trim()
      .split('\n')
      .map((line) => basename(line.replace(/ \(discriminator \d+\)$/, '')));
    const own = addresses.map((address) => {
      const found = table.find(Number.parseInt(address, 16));
      return found === undefined ? 'nothing' : `${basename(found.file)}:${found.line}`;
    });
    const differing = own.flatMap((line, i) =>
      // Without a line, addr2line may still name a file, from the symbols.
      line === known[i] || (line === 'nothing' && known[i]?.endsWith(':?'))
        ? []
        : [`${addresses[i]}: ${line}, not ${known[i]}`],
    );
    expect(differing).toEqual([]);
    expect(own.filter((line) => line.endsWith('main.c:11')).length).toBeGreaterThan(0);
    expect(own.filter((line) => line === 'part.h:2').length).toBeGreaterThan(0);
  });

  it('leave out a unit that can’t be read, name it, and go on', () => {
    const path = compile('program', '-gdwarf-4');
    const bytes = parseElf(readFileSync(path), path).findSection('.debug_line')?.data.slice();
    if (bytes === undefined) throw new Error('no lines');
    const bad = new ByteWriter(64).writeU32(3).writeU16(9).writeU8(0).toBytes();
    const both = new Uint8Array([...bad, ...bytes]);
    const table = new LineTable({ bytes: both, source: 'two' });
    expect(table.problems.map((problem) => problem.message)).toEqual([
      expect.stringContaining('line table version 9'),
    ]);
    expect([...table.rows()].length).toBeGreaterThan(30);
  });
});
