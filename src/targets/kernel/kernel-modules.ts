import { decodeText } from '../../base/byte-reader.js';
import { SYMBOL_BYTES } from '../../elf/symbols.js';
import { KernelSymbolTable } from '../../kernel-image/symbol-table.js';
import type { GuestMemory } from './guest-memory.js';
import { type KernelLayout, StructReader } from './kernel-layout.js';
import type { KernelAddresses } from './running-kernel.js';

/** A loaded module, as the kernel's memory describes it. */
export interface KernelModule {
  readonly name: string;
  /** Of its `struct module`. */
  readonly structAddress: number;
  readonly text: { readonly address: number; readonly sizeBytes: number };
  readonly symbols: KernelSymbolTable;
  readonly orc: {
    readonly entries: Uint8Array;
    readonly ips: { readonly bytes: Uint8Array; readonly address: number };
  };
}

const MAX_MODULES = 10_000;
const MODULE_STATE_UNFORMED = 3;

/** Reads the list `modules`: those that are loaded, with symbols and ORC tables, since their files may be anywhere. */
export async function readModules(
  memory: GuestMemory,
  kernel: KernelAddresses,
  layout: KernelLayout,
): Promise<readonly KernelModule[]> {
  const head = kernel.find('modules');
  if (head === undefined) return [];
  const read = new StructReader(memory);
  const at = (...paths: string[]) => layout.expect('module', ...paths);
  const place = { list: at('list'), name: at('name'), state: at('state'), kallsyms: at('kallsyms') };
  // 6.4 replaced the two layouts by an array, of which the first is the text (ac3b43283923).
  const base = at('core_layout.base', 'mem');
  const memoryBase = layout.find('module_memory', 'base');
  const textSize = layout.find('module', 'core_layout.text_size') ?? layout.expect('module_memory', 'size');
  const modules: KernelModule[] = [];
  for (const address of await read.list(head, place.list, MAX_MODULES)) {
    if ((await read.number(address, place.state)) === MODULE_STATE_UNFORMED) continue;
    const textAt = memoryBase === undefined ? base : { offset: base.offset + memoryBase.offset };
    const sizeAt =
      memoryBase === undefined ? textSize : { ...textSize, offset: base.offset + textSize.offset };
    modules.push({
      name: await read.text(address, place.name),
      structAddress: address,
      text: { address: await read.address(address, textAt), sizeBytes: await read.number(address, sizeAt) },
      symbols: await readSymbols(memory, read, await read.address(address, place.kallsyms), layout),
      orc: await readOrc(memory, read, address, layout),
    });
  }
  return modules;
}

async function readOrc(
  memory: GuestMemory,
  read: StructReader,
  module: number,
  layout: KernelLayout,
): Promise<KernelModule['orc']> {
  const at = (path: string) => layout.expect('module', `arch.${path}`);
  const count = await read.number(module, at('num_orcs'));
  const address = await read.address(module, at('orc_unwind_ip'));
  return {
    entries:
      count === 0
        ? new Uint8Array()
        : await memory.read(await read.address(module, at('orc_unwind')), 6 * count),
    ips: { address, bytes: count === 0 ? new Uint8Array() : await memory.read(address, 4 * count) },
  };
}

/** `struct mod_kallsyms`: an ELF symbol table; the letters are kept beside it. */
async function readSymbols(
  memory: GuestMemory,
  read: StructReader,
  kallsyms: number,
  layout: KernelLayout,
): Promise<KernelSymbolTable> {
  if (kallsyms === 0) return new KernelSymbolTable([], '', new Float64Array());
  const at = (path: string) => layout.expect('mod_kallsyms', path);
  const count = await read.number(kallsyms, at('num_symtab'));
  const table = await memory.read(await read.address(kallsyms, at('symtab')), count * SYMBOL_BYTES);
  const letters = await memory.read(await read.address(kallsyms, at('typetab')), count);
  const view = new DataView(table.buffer, table.byteOffset, table.length);
  const nameAt = (i: number) => view.getUint32(i * SYMBOL_BYTES, true);
  const strings = await read.address(kallsyms, at('strtab'));
  const last = Math.max(0, ...Array.from({ length: count }, (_, i) => nameAt(i)));
  const text = new Uint8Array(last + MAX_NAME_BYTES);
  await memory.settle(() => memory.readInto(strings, text));
  const symbols = Array.from({ length: count }, (_, i) => ({
    name: decodeText(text.subarray(nameAt(i), text.indexOf(0, nameAt(i)))),
    letter: String.fromCharCode(letters[i] as number),
    address: Number(view.getBigInt64(i * SYMBOL_BYTES + 8, true)),
  }))
    .filter((symbol) => symbol.address < 0 && symbol.name !== '')
    .sort((a, b) => a.address - b.address);
  return new KernelSymbolTable(
    symbols.map((symbol) => symbol.name),
    symbols.map((symbol) => symbol.letter).join(''),
    Float64Array.from(symbols, (symbol) => symbol.address),
  );
}

/** `KSYM_NAME_LEN` */
const MAX_NAME_BYTES = 512;
