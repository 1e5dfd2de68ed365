import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { parseElf } from '../elf/reader.js';
import { type DebugSections, parseTypeLayouts } from './type-layouts.js';

const folder = mkdtempSync(join(tmpdir(), 'livegraft-layouts-'));
afterAll(() => rmSync(folder, { recursive: true }));

function compile(text: string, ...flags: string[]): string {
  const source = join(folder, flags.includes('c++') ? 'a.cc' : 'a.c');
  writeFileSync(source, text);
  const args = [...flags, '-o', join(folder, 'a.out'), source];
  const { status, stderr } = spawnSync('gcc', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return join(folder, 'a.out');
}

function sectionsOf(path: string): DebugSections {
  const elf = parseElf(readFileSync(path), path);
  const section = elf.findSection('.debug_info');
  if (section === undefined) throw new Error(`${path} has no debug information`);
  const values = new Map(
    elf.relocationsFor(section).map((r) => [r.offset, (elf.symbols[r.symbolIndex]?.value ?? 0) + r.addend]),
  );
  const data = (name: string) => elf.findSection(name)?.data ?? new Uint8Array();
  return {
    info: section.data,
    abbrev: data('.debug_abbrev'),
    str: data('.debug_str'),
    lineStr: data('.debug_line_str'),
    relocated: (offset) => values.get(offset),
    source: path,
  };
}

const TYPES = `
struct inner { char a; long b; };
union either { int number; char text[13]; };
struct outer {
  char first; short second; struct inner in[3]; union either u; struct outer *next;
  unsigned low : 3, high : 11; double d; void (*call)(int); const char *name; struct { int x, y; } point;
};
struct outer o; struct inner i; union either e;
`;
const MEMBERS: Readonly<Record<string, readonly string[]>> = {
  'struct inner': ['a', 'b'],
  'union either': ['number', 'text'],
  'struct outer': ['first', 'second', 'in', 'u', 'next', 'd', 'call', 'name', 'point'],
};

describe('parseTypeLayouts', () => {
  it.each(['-gdwarf-4', '-gdwarf-5'])('sees the sizes and offsets that the compiler uses (%s)', (version) => {
    const lines = Object.entries(MEMBERS).flatMap(([type, members]) => [
      `printf("${type} size %zu\\n", sizeof(${type}));`,
      ...members.map((m) => `printf("${type} ${m} %zu\\n", __builtin_offsetof(${type}, ${m}));`),
    ]);
    const program = compile(`#include <stdio.h>\n${TYPES}\nint main(void) { ${lines.join(' ')} return 0; }`);
    const stated = spawnSync(program, { encoding: 'utf8' }).stdout.trim().split('\n');
    const layouts = parseTypeLayouts(sectionsOf(compile(TYPES, '-c', version)));
    expect(stated.length).toBe(16);
    for (const line of stated) {
      const [kind, name, what, value] = line.split(' ');
      const text = layouts.get(`${kind} ${name}`) ?? '';
      expect(text).toMatch(
        what === 'size' ? new RegExp(`^${value}\\{`) : new RegExp(`[{,]${what}@${value}:`),
      );
    }
    expect(layouts.get('struct outer')).toContain('in@8:inner[3]');
    expect(layouts.get('struct outer')).toMatch(
      /low@\d*(\.\d+){2}:unsigned int,high@\d*(\.\d+){2}:unsigned int/,
    );
    expect(layouts.get('struct outer')).toMatch(/point@\d+:8\{x@0:int,y@4:int\}/);
  });

  it('tells what C++ nests and inherits', () => {
    const layouts = parseTypeLayouts(
      sectionsOf(
        compile(
          'namespace n { struct base { int b; }; class top : base { struct in { long x; } i; }; top t; }',
          '-x',
          'c++',
          '-c',
          '-g',
        ),
      ),
    );
    expect(layouts.get('struct n::top')).toBe('16{@0:base,i@8:in}');
    expect(layouts.get('struct n::top::in')).toBe('8{x@0:long int}');
  });
});
