import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseElf } from '../elf/reader.js';
import type { BtfFile, BtfType } from './btf.js';
import { parseBtf } from './parse-btf.js';

const SOURCE = `
enum colour { red, green = 7 };
enum signed_one { minus = -3, plus };
typedef unsigned long word;
struct inner { int a; union { short b; struct { char c, d; }; }; };
struct fields { unsigned x : 3; int y : 5; _Bool z; struct inner in[2]; double f; const volatile char *p; };
struct unknown;
struct list { struct list *next; struct unknown *u; int (*call)(struct list *, word); };
word counter;
enum colour paint; enum signed_one sign;
struct fields all; struct list head;
static long __attribute__((noinline)) twice(long v) { return 2 * v + counter; }
long entry(struct list *l, ...) { return twice((long)l); }
`;

function run(command: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 28 });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return stdout;
}

/** What `bpftool btf dump … format raw` prints for a type. */
function rawText(id: number, type: BtfType): string {
  const name = `'${'name' in type && type.name !== '' ? type.name : '(anon)'}'`;
  const lines = (head: string, rest: string[]) =>
    [`[${id}] ${head}`, ...rest.map((line) => `\t${line}`)].join('\n');
  const linkage = (value: number) => ['static', 'global', 'extern'][value];
  switch (type.kind) {
    case 'int': {
      const { signed, char, bool } = type.encoding;
      const names = [signed && 'SIGNED', char && 'CHAR', bool && 'BOOL'].filter((text) => text !== false);
      // gcc marks a plain char twice, for which bpftool has no word.
      const encoding = names.length > 1 ? 'UNKN' : (names[0] ?? '(none)');
      return lines(
        `INT ${name} size=${type.sizeBytes} bits_offset=${type.bitOffset} nr_bits=${type.bits} encoding=${encoding}`,
        [],
      );
    }
    case 'float':
      return lines(`FLOAT ${name} size=${type.sizeBytes}`, []);
    case 'array':
      return lines(
        `ARRAY ${name} type_id=${type.elementTypeId} index_type_id=${type.indexTypeId} nr_elems=${type.count}`,
        [],
      );
    case 'struct':
    case 'union':
      return lines(
        `${type.kind.toUpperCase()} ${name} size=${type.sizeBytes} vlen=${type.members.length}`,
        type.members.map(
          (m) =>
            `'${m.name === '' ? '(anon)' : m.name}' type_id=${m.typeId} bits_offset=${m.bitOffset}` +
            (m.bitFieldSize > 0 ? ` bitfield_size=${m.bitFieldSize}` : ''),
        ),
      );
    case 'enum':
    case 'enum64':
      return lines(
        `${type.kind.toUpperCase()} ${name} encoding=${type.signed ? 'SIGNED' : 'UNSIGNED'} size=${type.sizeBytes} vlen=${type.values.length}`,
        type.values.map(
          (v) => `'${v.name}' val=${v.value}${type.kind === 'enum64' ? (type.signed ? 'LL' : 'ULL') : ''}`,
        ),
      );
    case 'fwd':
      return lines(`FWD ${name} fwd_kind=${type.of}`, []);
    case 'ptr':
    case 'volatile':
    case 'const':
    case 'restrict':
    case 'typedef':
      return lines(`${type.kind.toUpperCase()} ${name} type_id=${type.typeId}`, []);
    case 'typeTag':
      return lines(`TYPE_TAG ${name} type_id=${type.typeId}`, []);
    case 'func':
      return lines(`FUNC ${name} type_id=${type.typeId} linkage=${linkage(type.linkage)}`, []);
    case 'funcProto':
      return lines(
        `FUNC_PROTO ${name} ret_type_id=${type.returnTypeId} vlen=${type.parameters.length}`,
        type.parameters.map((p) => `'${p.name === '' ? '(anon)' : p.name}' type_id=${p.typeId}`),
      );
    case 'var':
      return lines(`VAR ${name} type_id=${type.typeId}, linkage=${linkage(type.linkage)}`, []);
    case 'dataSection':
      return lines(
        `DATASEC ${name} size=${type.sizeBytes} vlen=${type.variables.length}`,
        type.variables.map((v) => `type_id=${v.typeId} offset=${v.offset} size=${v.sizeBytes}`),
      );
    case 'declTag':
      return lines(`DECL_TAG ${name} type_id=${type.typeId} component_idx=${type.component}`, []);
  }
}

function dump(btf: BtfFile): string[] {
  return Array.from({ length: btf.typeCount - 1 }, (_, i) => rawText(i + 1, btf.type(i + 1)));
}

/** bpftool adds the name of a section's variable behind its line. */
function bpftoolDump(path: string): string[] {
  return run('bpftool', 'btf', 'dump', 'file', path, 'format', 'raw')
    .replace(/ \(VAR '.*'\)$/gm, '')
    .trimEnd()
    .split(/\n(?=\[)/);
}

const folder = mkdtempSync(join(tmpdir(), 'livegraft-btf-'));
const object = join(folder, 'types.o');
let bytes = new Uint8Array();

beforeAll(() => {
  writeFileSync(join(folder, 'types.c'), SOURCE);
  run('gcc', '-O1', '-gbtf', '-c', '-o', object, join(folder, 'types.c'));
  bytes = new Uint8Array(parseElf(readFileSync(object), object).findSection('.BTF')?.data ?? []);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('parseBtf', () => {
  it('reads the types that bpftool reads', () => {
    const btf = parseBtf(bytes, object);
    const theirs = bpftoolDump(object);
    expect(theirs.length).toBeGreaterThan(25);
    expect(dump(btf)).toEqual(theirs);
  });

  it('finds members through unnamed structs, with the offsets of the compiler', () => {
    const btf = parseBtf(bytes, object);
    const fields = btf.findType('struct', 'fields') as number;
    const inner = btf.findType('struct', 'inner') as number;
    expect(btf.findField(fields, 'y')).toMatchObject({ bitOffset: 3, bitFieldSize: 5 });
    expect(btf.findField(fields, 'f')?.bitOffset).toBe(192);
    expect(btf.findField(inner, 'd')?.bitOffset).toBe(40);
    expect(btf.findField(fields, 'in')?.bitOffset).toBe(32);
    expect(btf.sizeOf(btf.findField(fields, 'in')?.typeId as number)).toBe(16);
    expect(btf.findField(inner, 'nothing')).toBeUndefined();
  });
});
