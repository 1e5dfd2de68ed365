import { describe, expect, it } from 'vitest';
import { layoutOf } from '../../../test/support/btf-layout.js';
import { GuestMemory } from './guest-memory.js';
import { modulePlaces } from './kernel-modules.js';
import { readModuleSections } from './module-identity.js';

const COMMON = `
struct list_head { struct list_head *next, *prev; };
struct attribute { const char *name; unsigned short mode; };
struct bin_attribute { struct attribute attr; unsigned long size; void *private; void *read; };
struct attribute_group { const char *name; void *is_visible; union { void *attrs; void *attrs_const; }; void *bin_attrs; };
struct module_sect_attrs; struct mod_kallsyms;
#define HEAD int state; struct list_head list; char name[56]; struct module_sect_attrs *sect_attrs; struct mod_kallsyms *kallsyms;
`;
/** As the structures are in 5.10 to 6.3. */
const OLDER = layoutOf(`${COMMON}
struct module_layout { void *base; unsigned int size, text_size; };
struct module { HEAD struct module_layout core_layout, init_layout; };
struct module_sect_attr { struct bin_attribute battr; unsigned long address; };
struct module_sect_attrs { struct attribute_group grp; unsigned int nsections; struct module_sect_attr attrs[]; };
struct module m; struct module_sect_attrs s; struct module_sect_attr a;`);
/** As they are since 6.4 and 6.14. */
const NEWER = layoutOf(`${COMMON}
struct module_memory { void *base; _Bool is_rox; unsigned int size; };
struct module { HEAD struct module_memory mem[7]; };
struct module_sect_attrs { struct attribute_group grp; struct bin_attribute attrs[]; };
struct module m; struct module_sect_attrs s; struct bin_attribute b;`);

const [MODULE, ATTRIBUTES, FIRST, SECOND, POINTERS, NAMES] = [
  -0x10000, -0xf000, -0xe000, -0xd000, -0xc000, -0xb000,
];
const SECTIONS = [
  { name: '.note.gnu.build-id', address: -0x3000 },
  { name: '.text', address: -0x2000 },
];

function guest(words: readonly (readonly [number, number])[]): GuestMemory {
  const bytes = new Map<number, number>();
  const put = (address: number, data: Uint8Array) =>
    data.forEach((byte, i) => {
      bytes.set(address + i, byte);
    });
  for (const [address, value] of words) put(address, new Uint8Array(BigInt64Array.of(BigInt(value)).buffer));
  SECTIONS.forEach(({ name }, i) => {
    put(NAMES + 64 * i, new TextEncoder().encode(name));
  });
  return new GuestMemory({
    readMemory: async (address, sizeBytes) =>
      Uint8Array.from({ length: sizeBytes }, (_, i) => bytes.get(address + i) ?? 0),
    writeMemory: async () => {},
  });
}

describe('the structures of a module', () => {
  it('have the text in the first layout, or in the first part of its memory', () => {
    const older = modulePlaces(OLDER);
    expect([older.textAt.offset, older.sizeAt.offset]).toEqual([96, 108]);
    const newer = modulePlaces(NEWER);
    expect([newer.textAt.offset, newer.sizeAt.offset]).toEqual([96, 108]);
    expect(newer.sizeAt.sizeBytes).toBe(4);
  });

  it('name its sections in an array with their number', async () => {
    const at = (i: number) => ATTRIBUTES + 40 + 48 * i;
    const memory = guest([
      [MODULE + 80, ATTRIBUTES],
      [ATTRIBUTES + 32, SECTIONS.length],
      ...SECTIONS.flatMap(({ address }, i) => [
        [at(i), NAMES + 64 * i] as const,
        [at(i) + 40, address] as const,
      ]),
    ]);
    expect(await readModuleSections(memory, OLDER, MODULE)).toEqual(SECTIONS);
    expect(await readModuleSections(guest([]), OLDER, MODULE)).toEqual([]);
  });

  it('or in a list of files with an end', async () => {
    const files = [SECOND, FIRST];
    const memory = guest([
      [MODULE + 80, ATTRIBUTES],
      [ATTRIBUTES + 24, POINTERS],
      ...files.flatMap((file, i) => [
        [POINTERS + 8 * i, file] as const,
        [file, NAMES + 64 * i] as const,
        [file + 24, SECTIONS[i]?.address ?? 0] as const,
      ]),
    ]);
    expect(await readModuleSections(memory, NEWER, MODULE)).toEqual(SECTIONS);
    expect(await readModuleSections(guest([]), NEWER, MODULE)).toEqual([]);
  });
});
